"""medsora.project.new, medsora.project.fit: `python -m medsora new`: the config fits the folder and the
machine, loads, and says why on every line.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from pathlib import Path

import pytest
import torch
from rich.console import Console

from medsora.__main__ import parser
from medsora.config.load import load_config
from medsora.data.checking.check import CheckReport, SourceReport
from medsora.data.checking.scan import Scan
from medsora.data.checking.windows import clip_span, windows_of
from medsora.data.phantom import render_clip
from medsora.data.reading.find import Source
from medsora.data.reading.video_io import write_video
from medsora.errors import BadInput
from medsora.project import new as new_project
from medsora.project.fit import Fit, Machine, fit_project, render_config
from medsora.runtime.files import write_json
from medsora.training.dry_run.report import dry_run_denoiser
from medsora.training.schedule import Schedule
from medsora.training.stage2.build import build_denoiser
from tests.support.paths import ROOT
from tests.support.video_files import bordered, lettered

UP_BLOCKS = {
    "up_block_types": ["UpDecoderBlock2D"] * 4,
    "block_out_channels": [8, 8, 8, 8],
    "norm_num_groups": 4,
}
CPU, SMALL, USUAL, LARGE = (Machine(gib, 4) for gib in (0, 8, 24, 80))


@pytest.fixture(autouse=True)
def _repository(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "configs").symlink_to(ROOT / "configs")
    monkeypatch.chdir(tmp_path)


def checker(*scans: Scan) -> Callable[[int, int], CheckReport]:
    def check(frames: int, interval: int) -> CheckReport:
        span = clip_span(frames, interval)
        reports = [
            SourceReport(
                Source(Path(f"v{k}"), f"v{k}"),
                scan,
                tuple(windows_of(scan, span, span)),
                span,
                scan.margins,
            )
            for k, scan in enumerate(scans)
        ]
        return CheckReport(Path("videos"), frames, interval, tuple(reports), {}, ())

    return check


def videos(
    count: int = 4, frames: int = 1500, fps: float | None = 30, size: Sequence[int] = (768, 576)
) -> Callable[[int, int], CheckReport]:
    return checker(*[Scan("mov", "h264", *size, fps, frames)] * count)


def fitted(check: Callable[[int, int], CheckReport], machine: Machine, **options: object) -> Fit:
    return fit_project("mine", "videos", check, machine, **options)


@pytest.mark.parametrize("machine", [CPU, SMALL, USUAL, LARGE], ids=["CPU", "8", "24", "80"])
def test_the_config_loads_and_every_line_has_its_reason(machine: Machine, tmp_path: Path) -> None:
    fit = fitted(videos(), machine)
    text = render_config(fit, "first\nsecond")
    assert text.startswith("# first\n# second\nrun:\n  name: mine #")
    for line in text.splitlines():
        assert line.startswith("#") or line.endswith(":") or line.lstrip().startswith("- ") or " # " in line
    (tmp_path / "it.yaml").write_text(text, encoding="utf-8")
    config = load_config(tmp_path / "it.yaml")
    for section, values in fit.values.items():
        for name in values.keys() - {"phases"}:
            assert getattr(getattr(config, section), name) == values[name], f"{section}.{name}"
    assert [vars(phase) for phase in config.train_dit.phases] == [
        {"until_epoch": None} | phase for phase in fit.values["train_dit"]["phases"]
    ]
    if machine is CPU:
        assert "hub" not in (config.dino.weights, config.vae.base)
        assert Path(config.vae.base).is_file()


@pytest.mark.parametrize("name", ["null", "True", "NO", "on", "a b", "1e3", "mine"])
def test_a_name_that_is_a_word_of_yaml_stays_a_name(name: str, tmp_path: Path) -> None:
    fit = fit_project(name, "videos", videos(), CPU)
    (tmp_path / "it.yaml").write_text(render_config(fit, ""), encoding="utf-8")
    assert load_config(tmp_path / "it.yaml").run.name == name


@pytest.mark.parametrize(
    ("check", "interval", "words"),
    [
        (videos(fps=30), 3, "30 frames per second in the videos, 10 in a clip"),
        (videos(fps=25), 2, "25 frames per second in the videos, 12.5 in a clip"),
        (videos(fps=60), 6, "in the videos, 10 in a clip"),
        (videos(fps=5), 1, "in the videos, 5 in a clip"),
        (videos(fps=None), 1, "store no frame rate"),
        (videos(frames=40), 2, "would need 3, but most videos are too short"),
    ],
)
def test_the_interval_follows_the_frame_rate(check: Callable, interval: int, words: str) -> None:
    fit = fitted(check, USUAL)
    assert fit.values["data"]["interval"] == interval
    assert words in fit.reasons["data.interval"]


def test_one_odd_video_does_not_decide() -> None:
    usual, short = Scan("mov", "h264", 640, 480, 30, 900), Scan("mov", "h264", 640, 480, 30, 20)
    assert fitted(checker(*[usual] * 8, short), USUAL).values["data"]["interval"] == 3


@pytest.mark.parametrize("machine", [CPU, USUAL], ids=["CPU", "24"])
def test_clips_have_17_frames_where_videos_are_long_enough(machine: Machine) -> None:
    """One more is read for the optical flow; 8k + 1 frames before 8k ones of about the same length."""
    for frames, expected in ((1500, 17), (18, 17), (17, 16), (16, 9), (10, 9), (9, 8)):
        fit = fitted(videos(frames=frames), machine)
        assert fit.values["data"]["frames"] == expected
        assert ("the paper's: 16" if expected == 17 else "long enough for 17") in fit.reasons["data.frames"]


def test_short_and_small_videos_get_short_and_small_clips() -> None:
    fit = fitted(videos(frames=9, size=(120, 100)), USUAL)
    assert fit.values["data"] | {"frames": 8, "size": 96} == fit.values["data"]
    bordered_scan = Scan("mov", "h264", 400, 300, 30, 900, margins=(0.4, 0.4, 0, 0))
    assert fitted(checker(bordered_scan), USUAL).values["data"]["size"] == 48
    assert fitted(checker(bordered_scan), USUAL, size=128).values["data"]["size"] == 128
    assert fitted(videos(), CPU).values["data"]["size"] == 64


def test_nothing_usable_is_one_sentence() -> None:
    with pytest.raises(BadInput, match="no usable clip of 18 frames at interval 1: v0: too short: 8 frames"):
        fitted(videos(frames=8), USUAL)


def test_memory_decides_preset_batch_and_checkpointing() -> None:
    def facts(machine: Machine, **options: object) -> tuple:
        values = fitted(videos(), machine, **options).values
        return (
            values["denoiser"]["preset"],
            values["train_dit"]["phases"][0]["batch"],
            values["denoiser"]["gradient_checkpointing"],
            values["train_vae"]["gradient_checkpointing"],
        )

    assert facts(LARGE) == facts(USUAL) == ("B", 16, False, False)
    assert facts(SMALL) == ("S", 4, False, True)
    assert facts(USUAL, preset="L") == ("L", 8, False, False)
    assert facts(LARGE, preset="XL") == ("XL", 16, False, False)
    assert facts(Machine(4, 2)) == ("S", 1, True, True)
    assert facts(LARGE, size=256)[1] == 16
    assert facts(Machine(40, 4), size=256)[1] == 4


def test_the_docs_show_what_is_written_for_each_gpu() -> None:
    page = (ROOT / "docs" / "training.md").read_text(encoding="utf-8")
    row = r"^\| [^|]+ \| (\w+) \| (\d+)[^|]* \| ([^|]+) \| `--memory (\d+)(?: --preset \w+)?` \|$"
    rows = re.findall(row, page, re.MULTILINE)
    assert len(rows) == 5
    for preset, batch, checkpointing, memory in rows:
        values = fitted(videos(), Machine(int(memory), 4), preset=preset).values
        assert values["train_dit"]["phases"][0]["batch"] == int(batch), (preset, memory)
        assert values["train_vae"]["gradient_checkpointing"] == (checkpointing == "with checkpointing")


def test_on_a_cpu_the_batch_follows_the_machines_memory() -> None:
    def batch(ram_gib: float, **options: object) -> tuple[int, str]:
        fit = fitted(videos(), Machine(0, 2, ram_gib), **options)
        return fit.values["train_dit"]["phases"][0]["batch"], fit.reasons["train_dit.phases"]

    assert batch(16)[0] == 8
    assert batch(3) == (2, "3.0 GiB of memory: a clip of a step takes about 0.08 GiB")
    assert batch(1)[0] == 1
    assert batch(4, size=128)[0] == 2


def test_more_clips_ask_for_more_steps() -> None:
    few, many, lots = (fitted(videos(count), USUAL).values for count in (1, 100, 2000))
    assert few["train_dit"]["max_steps"] == 20_000
    assert many["train_dit"]["max_steps"] == 100 * (100 * (1500 // clip_span(18, 3))) // 2
    assert lots["train_dit"]["max_steps"] == 400_000
    assert [values["train_vae"]["max_steps"] for values in (few, many, lots)] == [1000, 20_000, 20_000]


@pytest.mark.parametrize("machine", [CPU, USUAL], ids=["CPU", "24"])
def test_max_steps_is_what_ends_the_run(machine: Machine, tmp_path: Path) -> None:
    (tmp_path / "it.yaml").write_text(render_config(fitted(videos(2, 90), machine), ""), encoding="utf-8")
    config = load_config(tmp_path / "it.yaml")
    for settings in (config.train_vae, config.train_dit):
        assert Schedule.of(settings, 1).total_steps == settings.max_steps


def test_a_large_folder_gives_a_cpu_more_steps_too() -> None:
    few, many = (fitted(videos(count), CPU).values for count in (1, 200))
    assert few["train_vae"]["max_steps"] < many["train_vae"]["max_steps"] == 1000
    assert few["train_dit"]["max_steps"] < many["train_dit"]["max_steps"] == 5000


def test_the_config_reports_how_many_videos_are_held_out() -> None:
    reasons = fitted(videos(4), USUAL).reasons
    assert reasons["data.holdout"].startswith("1 of 4 videos never trained on")


ENDORA = [(CPU, "endora-tiny"), (Machine(4, 4), "endora-S"), (USUAL, "endora-B"), (LARGE, "endora-XL")]


@pytest.mark.parametrize(("machine", "preset"), ENDORA, ids=[preset for _, preset in ENDORA])
def test_endora_gets_what_it_was_published_with(machine: Machine, preset: str, tmp_path: Path) -> None:
    (tmp_path / "it.yaml").write_text(
        render_config(fitted(videos(), machine, preset=preset), ""), encoding="utf-8"
    )
    config = load_config(tmp_path / "it.yaml")
    assert config.denoiser.preset == preset
    assert Schedule.of(config.train_dit, 1).total_steps == config.train_dit.max_steps
    with torch.device("meta"):
        build_denoiser(config, 4)
    if machine is CPU:
        found = (config.vae.kind, config.alignment.kind, config.train_dit.phases[0].lr)
        assert found == ("causal", "flow", 1e-3)
        return
    assert (config.vae.kind, config.data.frames, config.images.encoding) == ("per-frame", 16, "single")
    assert (config.alignment.kind, config.alignment.weight) == ("image", 0.5)
    (phase,) = config.train_dit.phases
    assert phase.lr == 1e-4
    tight = machine.gpu_gib == 4
    assert (phase.batch, config.denoiser.gradient_checkpointing) == (1 if tight else 5, tight)


def test_a_config_for_endora_is_ready_to_train(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    for number in range(3):
        write_video(tmp_path / "my videos" / f"{number}.mp4", render_clip(number, 20, 64).video, 25)
    output = new("projects/tiny", "--data", "my videos", "--memory", "0", "--preset", "endora-tiny")
    assert "train-vae" in output
    output = new("projects/small", "--data", "my videos", "--memory", "8", "--preset", "endora-S")
    assert "train-vae" not in output
    assert "medsora sample --model runs/small/dit-endora-S" in output
    write_json(tmp_path / "kl.json", {"down_block_types": ["DownEncoderBlock2D"] * 4} | UP_BLOCKS)
    offline = {"small": ["vae.base=kl.json", "dino.weights=random"], "tiny": ["vae.path=base"]}
    monkeypatch.setattr("medsora.training.dry_run.report.USUAL_SIDES_PX", ())  # they take a minute
    for name, overrides in offline.items():
        dry_run_denoiser(load_config(f"projects/{name}/config.yaml", overrides))
        assert "ready" in capsys.readouterr().out.splitlines()


@pytest.mark.parametrize(
    ("machine", "preset", "words"),
    [
        (CPU, "B", "needs a GPU"),
        (USUAL, "tiny", "is for CPUs"),
        (CPU, "endora-B", "needs a GPU"),
        (USUAL, "endora-tiny", "is for CPUs"),
    ],
)
def test_a_preset_that_does_not_fit_the_machine(machine: Machine, preset: str, words: str) -> None:
    with pytest.raises(BadInput, match=words):
        fitted(videos(), machine, preset=preset)


# The command itself


def new(*arguments: str) -> str:
    options = parser().parse_args(["new", *arguments])
    console = Console(record=True, width=200)
    assert options.work == "medsora.project.new"
    new_project.run(options, console)
    return console.export_text()


def test_the_scripts_are_named_in_their_own_folder_only(monkeypatch: pytest.MonkeyPatch) -> None:
    given = Path("p"), "p", "S"
    for folder in (Path.cwd(), ROOT / "docs"):
        monkeypatch.chdir(folder)
        assert not any(".py" in command for command in new_project.next_commands(*given))
    monkeypatch.chdir(ROOT)
    of_scripts = new_project.next_commands(*given)
    for command, script in zip(of_scripts, ("train_vae.py", "train_dit.py", "sample_ddim.py"), strict=True):
        assert f" {script} --" in command


def test_the_command_on_bordered_and_lettered_clips(tmp_path: Path) -> None:
    scene = render_clip(3, 20, 128).video
    write_video(tmp_path / "my videos" / "a.mp4", bordered(scene), 25)
    write_video(tmp_path / "my videos" / "b.mp4", lettered(scene), 25)
    output = new("projects/first", "--data", "my videos", "--memory", "0")
    assert "2 of 2 sources can be used" in output
    assert "cropped by top 12, bottom 20, left 100, right 28 pixels" in output
    assert "b.mp4: at the top left; a model would learn it" in output
    assert (
        output.lower().count("borders are cut off") == output.count("possible burnt-in text or logo in") == 1
    )
    commands = [line.strip() for line in output.partition("next:")[2].splitlines() if line.strip()]
    assert commands == [
        "accelerate launch -m medsora train-vae --config projects/first/config.yaml",
        "accelerate launch -m medsora train-dit --config projects/first/config.yaml",
        "medsora sample --model runs/first/dit-tiny --num-videos 4 --steps 250 --out runs/first/videos",
    ]
    config = load_config("projects/first/config.yaml")
    assert (config.data.root, config.data.crop, config.data.interval) == ("my videos", "auto", 1)
    assert Path("projects/first/contact-sheet.png").is_file()
    with pytest.raises(BadInput, match=r"config\.yaml is there already"):
        new("projects/first", "--data", "my videos")


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["p", "--data", "nowhere"], "there is no folder nowhere"),
        (["p", "--data", "empty"], "empty holds no videos"),
        (["p", "--data", "empty", "--size", "100"], "a multiple of 16"),
        (["p", "--data", "empty", "--memory", "-1"], "--memory"),
        (["taken", "--data", "empty"], "runs/taken holds a run"),
    ],
)
def test_bad_input_is_one_sentence(arguments: list[str], words: str) -> None:
    Path("empty").mkdir()
    Path("runs/taken").mkdir(parents=True)
    with pytest.raises(BadInput, match=words):
        new(*arguments)
    assert not Path("p").exists()
