"""medsora.studies.ablate, medsora.studies.command: what is trained, with what, in which order; resuming."""

from __future__ import annotations

import json
import os
import re
import signal
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from subprocess import Popen
from unittest import mock

import pytest
import torch

from medsora.config.load import load_config, save_config
from medsora.errors import BadInput, Interrupted
from medsora.runtime.files import END_MARK
from medsora.studies import ablate
from medsora.studies.command import ABLATION_BEGIN, main
from medsora.studies.report import Run
from medsora.studies.scores import Scoring
from medsora.studies.variants import Variant, variants_of
from medsora.training import fill_caches
from medsora.training.run.folder import ELAPSED, previous_config
from medsora.training.run.report import RunReport
from medsora.training.schedule import Schedule
from medsora.training.stage2 import command as train_dit
from medsora.training.stage2.inputs import Stage2Inputs
from tests.support import tiny_training as tiny

VARY = ["--vary", "denoiser.scan=spiral,raster", "--clips", "1", "--out", "study"]


@pytest.fixture
def config(clips: Path, vae_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    monkeypatch.chdir(tmp_path)
    outputs = {"run__dir": "runs", "cache__dir": "cache"}
    values = tiny.tiny_config(tmp_path, clips, vae__path=str(vae_folder), alignment__weight=0, **outputs)
    save_config(values, tmp_path / "a.yaml")
    return "a.yaml"


@pytest.fixture
def launched(monkeypatch: pytest.MonkeyPatch) -> list[list[str]]:
    """The commands of runs, which are trained in this process instead of one of their own."""
    words_of: list[list[str]] = []

    def launch(words: list[str], *, timed: bool = False, module: str = "medsora") -> int:
        words_of.append(list(words))
        if module != "medsora":
            assert module == fill_caches.__name__
            fill_caches.fill_caches(load_config(words[1], words[2:]))
            return 0
        assert words[0] == "train-dit"
        limit = words.index("--time-limit") if timed else len(words)
        ends = ["train_dit.max_steps=1"] if timed else []  # where the time is over
        with mock.patch.object(RunReport, "update"), tiny.nothing_silent():
            train_dit.main([*words[1:limit], *words[limit + 2 :], *ends])
        return ablate.INTERRUPTED if timed else 0

    monkeypatch.setattr(ablate, "launch", launch)
    return words_of


def study(config: str, *more: str) -> None:
    main(["ablate", "--config", config, *VARY, *more])


def names(launched: list[list[str]]) -> list[str]:
    return [
        word.removeprefix("run.name=") for words in launched for word in words if word.startswith("run.name=")
    ]


def test_variants_share_clips_noise_and_latents_and_are_compared(
    config: str, launched: list[list[str]], capsys: pytest.CaptureFixture[str]
) -> None:
    fed: list[torch.Tensor] = []
    noised_latents = Stage2Inputs.noised_latents

    def noted(self: Stage2Inputs, batch: dict) -> object:
        noised = noised_latents(self, batch)
        fed.append(noised.z_t)
        return noised

    with mock.patch.object(Stage2Inputs, "noised_latents", noted):
        study(config, "--seeds", "2", "--steps", "2")
    runs = ["as-configured-seed-0", "denoiser.scan=raster-seed-0"]
    assert names(launched) == [*runs, *(name.replace("seed-0", "seed-1") for name in runs)]
    of_run = len(fed) // 4
    first, raster, other_seed, _ = (fed[k * of_run : (k + 1) * of_run] for k in range(4))
    assert all(torch.equal(one, other) for one, other in zip(first, raster, strict=True))
    assert not any(torch.equal(one, other) for one, other in zip(first, other_seed, strict=True))
    saved = [previous_config(Path("study", name, "dit-tiny")) for name in runs]
    assert [each.denoiser.scan for each in saved] == ["spiral", "raster"]
    assert len(list(Path("cache").iterdir())) == 2, "one per seed, which draws its own split"

    page = Path("study/results.md").read_text(encoding="utf-8")
    assert page in capsys.readouterr().out
    assert "4 of 4 runs are finished: 2 steps each, seeds 0, 1" in page
    assert "medsora study ablate --config a.yaml --vary denoiser.scan=spiral,raster" in page
    assert page.count("medsora train-dit --config a.yaml") == 2
    results = json.loads(Path("study/results.json").read_text(encoding="utf-8"))
    scores = {
        (run["title"], run["seed"]): run["evaluations"]["2"]["held_out/clip_mse"] for run in results["runs"]
    }
    expected = (
        sum(scores["denoiser.scan=raster", seed] - scores["as configured", seed] for seed in (0, 1)) / 2
    )
    difference = results["differences"]["denoiser.scan=raster"]["held_out/clip_mse"]
    assert difference["mean"] == pytest.approx(expected)
    assert difference["low"] < difference["mean"] < difference["high"]

    launched.clear()
    study(config, "--seeds", "2", "--steps", "2")
    assert launched == []
    study(config, "--seeds", "2", "--steps", "2", "--dry-run")
    assert "medsora train-dit --config a.yaml" in capsys.readouterr().out
    assert launched == []


@pytest.mark.parametrize(("root", "classes"), [("clips", 2), ("null", 3)])
def test_trained_parameters_include_the_embedding_of_labels(
    config: str, clips: Path, root: str, classes: int, capsys: pytest.CaptureFixture[str]
) -> None:
    rows = [f"{path.name},{'ab'[number % 2]}" for number, path in enumerate(sorted(clips.glob("*.mkv")))]
    Path("labels.csv").write_text("\n".join(["file,label", *rows, ""]), encoding="utf-8")
    counts = []
    for labels in ("none", "labels.csv"):
        given = [f"data.labels={labels}", f"data.root={clips if root == 'clips' else root}"]
        study(config, "--steps", "2", "--dry-run", *given)
        counted = re.search(r"as configured: ([\d,]+) trained", capsys.readouterr().out)
        counts.append(int(counted[1].replace(",", "")))
    assert counts[1] - counts[0] == (classes + 1) * tiny.DENOISER["width"]


def test_a_study_that_was_stopped_is_resumed_and_a_failed_run_is_reported(
    config: str,
    launched: list[list[str]],
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    launch = ablate.launch

    def then(outcome: Callable[[], int]) -> None:
        monkeypatch.setattr(ablate, "launch", lambda words, **_: outcome() if launched else launch(words))

    def stopped() -> int:
        raise Interrupted("saved; run the same command to resume.")

    shown = Path("ablation.md")
    shown.write_text(f"{ABLATION_BEGIN.format('train_dit')}\n{END_MARK}\n", encoding="utf-8")
    then(stopped)
    with pytest.raises(Interrupted):
        study(config, "--seeds", "1", "--steps", "1", "--page", str(shown))
    assert "1 seed (1 of 2 runs finished)" in shown.read_text(encoding="utf-8")
    page = Path("study/results.md").read_text(encoding="utf-8")
    assert "1 of 2 runs are finished" in page
    assert "| denoiser.scan=raster | " in page
    assert "| 0 of 1 | – | not run | – |" in page

    def refused() -> int:
        raise BadInput("this run was refused (see above)")

    shown.write_text(f"{ABLATION_BEGIN.format('train_dit')}\n{END_MARK}\n", encoding="utf-8")
    then(refused)
    with pytest.raises(BadInput, match="was refused"):
        study(config, "--seeds", "1", "--steps", "1", "--page", str(shown))
    assert "1 seed (1 of 2 runs finished)" in shown.read_text(encoding="utf-8")

    then(lambda: ablate.FAILED)
    with pytest.raises(SystemExit) as end:
        study(config, "--seeds", "1", "--steps", "1")
    assert end.value.code == 1
    printed = capsys.readouterr()
    assert "1 of the runs failed (see above): denoiser.scan=raster, seed 0" in printed.err
    assert Path("study/results.md").read_text(encoding="utf-8") in printed.out, "what is there is shown"

    launched.clear()
    monkeypatch.setattr(ablate, "launch", launch)
    with ablate.hold_folder(Path("study/denoiser.scan=raster-seed-0")), monkeypatch.context() as patched:
        patched.setattr(ablate, "hold_folder", mock.Mock(side_effect=BadInput("in use")))
        study(config, "--seeds", "1", "--steps", "1")
    assert launched == []
    assert "is left to the process that works on it" in capsys.readouterr().err
    study(config, "--seeds", "1", "--steps", "1")
    assert names(launched) == ["denoiser.scan=raster-seed-0"]
    assert "one seed: no interval" in Path("study/results.md").read_text(encoding="utf-8")


def test_a_run_whose_sampling_failed_is_reported_after_all_others(
    config: str,
    launched: list[list[str]],
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setattr(ablate, "check_phantom", lambda config: None)
    held, scored_while_held = [], []

    @contextmanager
    def hold(folder: Path, **_: object) -> Iterator[None]:
        held.append(folder)
        yield
        held.remove(folder)

    def score(self: Scoring, folder: Path, *_: object) -> bool:
        scored_while_held.append(held == [folder.parent])
        return False

    monkeypatch.setattr(ablate, "hold_folder", hold)
    monkeypatch.setattr(Scoring, "score", score)
    with pytest.raises(SystemExit) as end:
        study(config, "--seeds", "1", "--steps", "1", "--score-clips", "4")
    assert end.value.code == 1
    assert len(launched) == 2
    assert "2 of the runs failed (see above): as configured, seed 0" in capsys.readouterr().err
    assert scored_while_held == [True, True], "another process could score the same clips"


def test_a_folder_whose_runs_had_other_settings_is_refused(config: str, launched: list[list[str]]) -> None:
    study(config, "--seeds", "1", "--steps", "1")
    trained, page = len(launched), Path("ablation.md")
    marks = f"{ABLATION_BEGIN.format('train_dit')}\n{END_MARK}\n"
    page.write_text(marks, encoding="utf-8")
    for words in (
        ["--steps", "2"],
        ["--minutes", "1", "train_dit.lr_decay=none"],
        ["--steps", "1", "--clips", "2"],
        ["--steps", "1", "train_dit.weight_decay=0.5"],
    ):
        with pytest.raises(BadInput, match="take another --out"):
            study(config, "--seeds", "1", "--page", str(page), *words)
    assert len(launched) == trained
    assert page.read_text(encoding="utf-8") == marks, "the runs of the folder are not those of the command"
    study(config, "--seeds", "2", "--steps", "1", "--vary", "denoiser.scan=raster,snake")
    assert len(launched) > trained, "seeds and variants may be added"


def test_the_settings_of_a_study_of_an_earlier_version_are_still_its_own(tmp_path: Path) -> None:
    """Written when the classifier's settings had other names."""
    scoring = {"clips": 8, "sampler": "dpmpp", "steps": 20, "judge_clips": 900, "judge_epochs": 24}
    (tmp_path / ablate.SETTINGS_NAME).write_text(json.dumps({"steps": 4, "scoring": scoring}))
    ablate.keep_settings(tmp_path, {"steps": 4, "scoring": Scoring(8)})
    with pytest.raises(BadInput, match="holds a study with scoring"):
        ablate.keep_settings(tmp_path, {"steps": 4, "scoring": Scoring(8, classifier_epochs=1)})


def test_runs_of_so_many_minutes_end_where_the_time_is_over(
    config: str,
    launched: list[list[str]],
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    shown = " --time-limit 0.001\n"
    study(config, "--seeds", "1", "--minutes", "0.001", "--dry-run")
    assert capsys.readouterr().out.count(shown) == 2
    monkeypatch.setattr(ablate, "_minutes", lambda log: 0.001 if log else 0.0)  # on any machine
    study(config, "--seeds", "1", "--minutes", "0.001")
    filling, timed, ending = launched[:3]
    assert filling[0] == "--config"
    limit = float(timed[timed.index("--time-limit") + 1])
    assert limit == 0.001
    assert ending[-1] == "train_dit.max_steps=1"
    page = Path("study/results.md").read_text(encoding="utf-8")
    assert "2 of 2 runs are finished: 0.001 minutes each" in page
    assert page.count(shown) == 2
    assert "Against steps" not in page


@pytest.mark.parametrize(
    ("stage", "vary"), [("train_dit", "alignment.weight=0"), ("train_vae", "train_vae.ffl=0")]
)
def test_neither_evaluations_nor_epochs_end_runs_of_minutes_early(config: str, stage: str, vary: str) -> None:
    _, variants = variants_of(config, [], [vary, "alignment.margin=0.5"] if stage == "train_dit" else [vary])
    of_minutes = ablate.Study(
        config, (), stage, tuple(variants), (0,), steps=None, minutes=4.0, clips=1, folder=Path("study")
    )
    for variant in variants:
        of_steps = getattr(replace(of_minutes, steps=8, minutes=None).config_of(variant, 0), stage)
        assert getattr(of_steps, "sample_every", ablate.NEVER) == ablate.NEVER, "sheets are no training"
        settings = getattr(of_minutes.config_of(variant, 0), stage)
        assert settings.log_every == 1, "no step is missing from the minutes"
        assert settings.eval_every == getattr(settings, "sample_every", ablate.NEVER) == ablate.NEVER
        assert Schedule.of(settings, clips=4).total_steps == ablate.NEVER
    one = replace(of_minutes, overrides=(f"{stage}.eval_every=3",))
    assert getattr(one.config_of(variants[0], 0), stage).eval_every == 3, "unless a user asks for them"


class Clock:
    """A study of four minutes whose processes take as long to start as `starts` says, by variant."""

    minutes = 4.0

    def __init__(self, **starts: float) -> None:
        self.starts, self.trained, self.now_min = starts, dict.fromkeys(starts, 0.0), 0.0

    def run(self, variant: Variant, seed: int) -> Run:
        return Run(variant.title, seed, minutes=self.trained[variant.title])

    def command(self, variant: Variant, seed: int, *more: str) -> list[str]:
        return [variant.title, *more]

    def launch(self, words: list[str], *, timed: bool) -> int:
        start, limit = self.starts[words[0]], float(words[-1])
        self.trained[words[0]] += max(0.0, limit - start)
        self.now_min += limit
        return ablate.INTERRUPTED

    def train(self, monkeypatch: pytest.MonkeyPatch, segment: float) -> Variant | None:
        """Train in segments of so many minutes, which may be more than the study's."""
        monkeypatch.setattr(ablate, "launch", self.launch)
        monkeypatch.setattr(ablate, "monotonic", lambda: 60 * self.now_min)
        variants = [Variant((), mock.Mock(), name) for name in self.starts]
        return ablate.train_minutes(self, variants, 0, segment)


@pytest.mark.parametrize("segment", [1.0, 4.0])
def test_the_start_of_a_process_is_no_minute_of_training(
    monkeypatch: pytest.MonkeyPatch, segment: float
) -> None:
    clock = Clock(quick=0.1, slow=0.9, slower_than_the_minutes=5.0 * segment / 4)
    assert clock.train(monkeypatch, segment) is None
    assert list(clock.trained.values()) == pytest.approx([4.0] * 3, abs=0.02 * segment)


@pytest.mark.parametrize("trained", [3.2, 3.5, 3.8])
@pytest.mark.parametrize("segment", [1.0, 4.0, 6.0])
def test_a_resumed_run_has_all_its_minutes_though_the_rest_is_shorter_than_a_start(
    monkeypatch: pytest.MonkeyPatch, segment: float, trained: float
) -> None:
    clock = Clock(a=0.9)
    clock.trained["a"] = trained
    assert clock.train(monkeypatch, segment) is None
    assert clock.trained["a"] == pytest.approx(4.0, abs=0.01)


def test_a_segment_of_more_than_the_minutes_is_all_of_them(monkeypatch: pytest.MonkeyPatch) -> None:
    clock = Clock(a=0.9)
    clock.minutes = 0.5
    assert clock.train(monkeypatch, 60.0) is None
    assert clock.trained["a"] == pytest.approx(0.5, abs=0.01)


def test_a_run_that_ends_before_its_minutes_says_so(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    clock = Clock(a=1e9)
    clock.trained["a"] = 3.5
    assert clock.train(monkeypatch, 1.0) is None
    message = "a, seed 0 ends after 3.50 of 4 minutes: no step fits into the rest."
    assert capsys.readouterr().err.strip() == message


def test_minutes_without_a_step_are_refused_and_a_failed_run_is_named(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    clock = Clock(stuck=1e9)
    with pytest.raises(BadInput, match=r"^no step of stuck fits into 4 minutes; give more by --minutes\.$"):
        clock.train(monkeypatch, 4.0)
    with pytest.raises(BadInput, match=r"^no step of stuck fits into 1 minute; give more by --segment\.$"):
        clock.train(monkeypatch, 1.0)
    monkeypatch.setattr(Clock, "launch", lambda *_, **__: ablate.FAILED)
    assert clock.train(monkeypatch, 4.0).title == "stuck"


def test_evaluations_before_the_first_step_and_after_the_last_are_no_minutes() -> None:
    log = [
        {"step": 0, "held_out/psnr": 20.0, ELAPSED: 30.0},
        {"step": 1, "loss/total": 1.0, ELAPSED: 60.0},
        {"step": 2, "loss/total": 1.0, ELAPSED: 90.0},
        {"step": 2, "held_out/psnr": 21.0, ELAPSED: 120.0},
    ]
    assert ablate._minutes(log) == 1.0
    assert ablate._minutes([]) == 0.0


@pytest.mark.parametrize(
    ("more", "sentence"),
    [
        (["--seeds", "0", "--steps", "1"], "--seeds is 0 but must be 1 to 20"),
        (["--seeds", "21", "--steps", "1"], "--seeds is 21"),
        (["--steps", "0"], "--steps is 0 but must be 1 to"),
        (["--minutes", "-1"], "--minutes is -1.0 but must be greater than 0"),
        (["--minutes", "5", "train_dit.lr_decay=cosine"], "add train_dit.lr_decay=none, or take --steps"),
        (["--steps", "1", "denoiser.overrides.heads=5"], "as configured: width 32 must be divisible"),
        (["--steps", "1", "--page", "gone.md"], "gone.md"),
        (["--steps", "1", "--page", "a.yaml"], "a.yaml: the marks .* are not there"),
        (["--steps", "1", "vae.path=nowhere"], "as configured: there is no trained VAE in nowhere"),
    ],
)
def test_bad_input_is_one_sentence_before_anything_is_trained(
    config: str, launched: list[list[str]], more: list[str], sentence: str
) -> None:
    with pytest.raises(BadInput, match=sentence) as refusal:
        study(config, *more)
    assert "\n" not in str(refusal.value)
    assert launched == []
    assert not Path("study").exists()


@pytest.mark.parametrize("words", [[], ["widen"], ["ablate"], ["ablate", "--config", "a", "--vary", "a=1"]])
def test_a_command_line_that_does_not_parse_ends_with_status_2(words: list[str]) -> None:
    with pytest.raises(SystemExit) as end:
        main(words)
    assert end.value.code == 2


def test_a_stage_1_variant_without_anything_to_train_is_refused_by_name(config: str) -> None:
    words = ["ablate", "--config", config, "--vary", "vae.compensation=false", "--steps", "1", "--dry-run"]
    with pytest.raises(BadInput, match=r"vae\.compensation=false: train: 'compensation', but"):
        main(words)
    main([*words, "train_vae.train=all"])


# Processes of their own


def stand_in(monkeypatch: pytest.MonkeyPatch, program: str) -> None:
    """Let `launch` start `program` instead of medsora."""
    started = [sys.executable, "-c", program]
    monkeypatch.setattr(ablate.subprocess, "Popen", lambda words: Popen([*started, *words[3:]]))


@pytest.mark.parametrize(("status", "returned"), [(0, 0), (1, 1), (-9, 1), (139, 1)])
def test_the_status_of_a_run_is_returned(monkeypatch, status: int, returned: int) -> None:
    program = f"import os; os.kill(os.getpid(), 9) if {status} < 0 else os._exit({status})"
    stand_in(monkeypatch, program)
    assert ablate.launch(["train-dit"]) == returned


def test_a_run_that_is_refused_or_interrupted_ends_the_study(monkeypatch) -> None:
    stand_in(monkeypatch, "import os; os._exit(2)")
    with pytest.raises(BadInput, match="refused \\(see above\\): medsora train-dit --config 'a b'"):
        ablate.launch(["train-dit", "--config", "a b"])
    stand_in(monkeypatch, "import os; os._exit(75)")
    with pytest.raises(Interrupted):
        ablate.launch(["train-dit"])
    assert ablate.launch(["train-dit"], timed=True) == 75


def test_a_request_to_stop_is_passed_on_and_waited_for(monkeypatch, tmp_path: Path) -> None:
    saved = tmp_path / "saved"
    stand_in(
        monkeypatch,
        "import os, pathlib, signal, sys, time\n"
        f"saved = pathlib.Path({str(saved)!r})\n"
        "def leave(*_):\n    time.sleep(0.2)\n    saved.write_text('saved')\n    os._exit(75)\n"
        "signal.signal(signal.SIGTERM, leave)\n"
        "saved.with_name('ready').touch()\n"
        "time.sleep(60)\n",
    )

    def stop_when_ready() -> None:
        while not saved.with_name("ready").exists():
            threading.Event().wait(0.05)
        os.kill(os.getpid(), signal.SIGTERM)

    before = signal.getsignal(signal.SIGTERM)
    threading.Thread(target=stop_when_ready, daemon=True).start()
    with pytest.raises(Interrupted):
        ablate.launch(["train-dit"], timed=True)
    assert saved.read_text() == "saved"
    assert signal.getsignal(signal.SIGTERM) == before
