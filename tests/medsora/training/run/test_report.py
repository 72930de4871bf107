"""medsora.training.run.report, medsora.training.run.trackers, medsora.training.progress,
medsora.training.stage2.block_alignment, medsora.html_report: what can be seen of a run: its page, curves per
block, sheets, trackers, the line that a person watches.
"""

from __future__ import annotations

import html
import json
import re
import warnings
from contextlib import nullcontext
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from PIL import Image
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from medsora.config.load import config_from_dict
from medsora.errors import BadInput
from medsora.html_report import draw_curves
from medsora.training import progress as progress_module
from medsora.training.progress import Progress
from medsora.training.run.folder import ELAPSED, read_log
from medsora.training.run.report import METRICS, write_run_report
from medsora.training.run.trackers import start_trackers, usable_trackers
from medsora.training.schedule import UNLIMITED_STEPS
from medsora.training.stage2.block_alignment import BlockAlignment
from medsora.vae.losses import VaeLossParts
from tests.support.tiny_training import tiny_config, train, write_clips, write_vae


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run of stage 2 with TensorBoard, every sample aligned, sampled at its end."""
    work = tmp_path_factory.mktemp("seen")
    changes = {
        "tracking__trackers": ["tensorboard"],
        "alignment__margin": 1e-4,
        "vae__path": str(write_vae(work / "vae")),
        "run__name": "seen",
        "train_dit__max_steps": 2,
    }
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return train("dit", tiny_config(work, write_clips(work / "clips"), **changes), pages=True)


def test_the_page_is_whole_and_needs_no_network(run: Path) -> None:
    page = (run / "report.html").read_text(encoding="utf-8")
    assert page.rstrip().endswith("</html>")
    assert "Step 2 of 2" in page
    assert "seen: the denoiser tiny" in page
    assert not re.findall(r"""(?:src|href)=["'](?!data:)|https?://|@import|url\(""", page)
    titles = "Now", "Held-out clips", "Latest videos", "Training", "Curves", "Command", "Versions", "Config"
    for title in (*titles, "Messages"):
        assert f"<h2>{title}</h2>" in page
    words = "clips per second", "waiting for data", "memory", "noise error at t = 50", "ema_decay: 0.9999"
    for word in (*words, "elapsed", "correlation of features with the flow prior"):
        assert word in page
    assert page.count("<video") == 1
    assert str(run.parents[1]) not in page, "nothing of where the run lies"
    assert page.count("<img") == 7  # the sheet and six groups of curves


def test_the_folder_holds_everything(run: Path) -> None:
    for name in ("config.yaml", "command.txt", "versions.json", "log.jsonl", "messages.txt", "report.html"):
        assert (run / name).stat().st_size > 0
    sheets = [run / "latest-sheet.png", run / "samples" / "step-0000002.png"]
    assert np.array_equal(*(np.asarray(Image.open(sheet)) for sheet in sheets))


def test_tensorboard_has_curves_per_block_and_sheets(run: Path) -> None:
    (folder,) = {
        path.parent for path in (run / "tensorboard").rglob("events.*") if path.parent.name == "medsora"
    }
    events = EventAccumulator(str(folder)).Reload()
    scalars = set(events.Tags()["scalars"])
    blocks = {"alignment/block_00", "alignment/block_01"}
    assert {"loss/total", "loss/alignment", "lr", "gradient_norm", "held_out/mse_t50"} | blocks <= scalars
    assert [event.step for event in events.Images("sheet")] == [2]
    logged = [line["alignment/block_01"] for line in read_log(run) if "alignment/block_01" in line]
    assert [event.value for event in events.Scalars("alignment/block_01")] == pytest.approx(logged)
    assert all(0 <= value <= 2 for value in logged)


def test_blocks_average_over_the_samples_that_had_targets() -> None:
    blocks = BlockAlignment()
    assert blocks.metrics() == {}
    blocks.add(torch.empty(2, 0))
    assert blocks.metrics() == {}
    blocks.add(torch.tensor([[0.0, 1.0], [1.0, 1.5]]))
    blocks.add(torch.tensor([[0.5], [2.0]]))
    assert blocks.metrics() == pytest.approx({"alignment/block_00": 0.5, "alignment/block_01": 1.5})
    assert blocks.metrics() == {}


def test_a_page_of_a_run_that_has_just_begun(tmp_path: Path) -> None:
    page = write_run_report(tmp_path, "<b>young", 10)
    text = page.read_text(encoding="utf-8")
    assert "Step 0 of 10" in text
    assert "&lt;b&gt;young" in text
    (tmp_path / "log.jsonl").write_text(json.dumps({"step": 5, "loss/total": 1.0}) + "\n", encoding="utf-8")
    assert "Step 5 of 10" in write_run_report(tmp_path, "young", 10).read_text(encoding="utf-8")


def page_of(folder: Path, log: list[dict[str, float]], total_steps: int = 300, **files: str) -> str:
    """Return a page's text without its marks, of a run that logged `log`."""
    for name, text in {"log.jsonl": "".join(json.dumps(line) + "\n" for line in log), **files}.items():
        (folder / name).write_text(text, encoding="utf-8")
    page = write_run_report(folder, "judged", total_steps).read_text(encoding="utf-8")
    return " ".join(html.unescape(re.sub(r"<[^>]*>", " ", page.split("<body>")[1])).split())


@pytest.mark.parametrize(
    ("name", "before", "now", "verdict"),
    [
        ("psnr", 20.0, 21.0, "better"),
        ("psnr", 21.0, 20.0, "worse"),
        ("psnr", 21.0, 21.0, "no better"),
        ("mse", 0.5, 0.25, "better"),
        ("mse", 0.25, 0.5, "worse"),
    ],
)
def test_the_page_reports_whether_the_last_evaluation_is_better(
    tmp_path: Path, name: str, before: float, now: float, verdict: str
) -> None:
    log = [{"step": 0, f"held_out/{name}": before}, {"step": 10, "loss/total": 1.0}]
    assert "there is none to compare it with" in page_of(tmp_path, log)
    text = page_of(tmp_path, [*log, {"step": 200, f"held_out/{name}": now}])
    assert f"The evaluation after step 200 is {verdict} than the one after step 0" in text
    assert re.search(rf"{before:.4g}\W+{now:.4g}\W+{verdict} ", text)


def test_elapsed_time_and_what_is_left_are_those_of_the_mean_speed(tmp_path: Path) -> None:
    log = [{"step": 0, ELAPSED: 60.0}, {"step": 100, ELAPSED: 60.0 + 3600}]
    text = page_of(tmp_path, log)
    assert "elapsed 1 h 1 min" in text
    assert "still to go, at this speed 2 h 0 min" in text
    assert "still to go" not in page_of(tmp_path, log, total_steps=100)
    without_end = page_of(tmp_path, log, total_steps=UNLIMITED_STEPS)
    assert "still to go" not in without_end, "only a time limit ends it"
    assert "Step 100, written" in without_end
    assert "elapsed" not in page_of(tmp_path, [{"step": 100}]), "a run of an earlier version"


def test_more_codes_guessed_right_are_better(tmp_path: Path) -> None:
    log = [{"step": k, "held_out/loss": 8 - k, "held_out/accuracy": k / 10} for k in (1, 2)]
    text = page_of(tmp_path, log)
    assert "is better than the one after step 1, by its loss." in text
    assert re.search(
        r"codes predicted correctly\W+0\.1\W+0\.2\W+better how often the likeliest next code", text
    )
    assert "which early stopping goes by; of EndoGen nats per code" in text


def test_every_loss_is_explained_once(tmp_path: Path) -> None:
    names = {f"loss/{name}" for name in (*VaeLossParts._fields, "mse", "vb", "alignment")}
    assert names <= METRICS.keys()
    assert all(figure.meaning for figure in METRICS.values())
    text = page_of(tmp_path, [{"step": 1, **dict.fromkeys(names, 0.123), "loss/lpips": 0.0}])
    assert text.count(" 0.123 ") == len(names) - 1
    assert "LPIPS" not in text


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        (
            "python /home/me/medsora/train_vae.py --config configs/a.yaml",
            "python …/train_vae.py --config configs/a.yaml",
        ),
        ("root: /data/private/clips", "root: …/clips"),
        ("root: ~/clips", "root: …/clips"),
        (r"root: C:\data\clips", "root: …/clips"),
        ("run.dir=/data/runs/x phantom", "run.dir=…/x phantom"),
        ("see https://example.org/a/b and 3/4", "see https://example.org/a/b and 3/4"),
    ],
)
def test_the_page_holds_no_path_of_the_machine(tmp_path: Path, text: str, shown: str) -> None:
    page = page_of(tmp_path, [], **{"messages.txt": text, "command.txt": text, "config.yaml": text})
    assert page.count(shown) == 3
    assert shown == text or text not in page


def test_curves_of_many_blocks_and_many_points_are_drawn(tmp_path: Path) -> None:
    log = [{"step": k, **{f"a/{block:02d}": 1 / (k + block) for block in range(12)}} for k in range(1, 5000)]
    draw_curves(tmp_path / "a.png", log, "a/", "twelve")
    assert Image.open(tmp_path / "a.png").width > 500


def test_the_line_names_losses_speed_waiting_and_memory(capsys: pytest.CaptureFixture[str]) -> None:
    with Progress("stage 2", 10, 3, show=True) as progress:
        progress.count(8, 0.0)
        progress.show({"loss/total": 0.5, "loss/mse": 0.25}, progress.speed())
        progress.bar.refresh()
    line = capsys.readouterr().err
    assert "4/10" in line
    assert re.search(r"total=0\.5 mse=0\.25 \| \S+ samples/s, 0% waiting for data, \d+\.\d GiB", line)


def test_the_line_has_no_total_where_only_a_time_limit_ends_the_run(
    capsys: pytest.CaptureFixture[str],
) -> None:
    with Progress("stage 2", UNLIMITED_STEPS, 3, show=True) as progress:
        progress.count(8, 0.0)
        progress.bar.refresh()
    line = capsys.readouterr().err
    assert "4step" in line
    assert "/1000000000" not in line


def test_losses_that_are_left_out_and_time_that_is_not_training(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    now = 100.0
    monkeypatch.setattr(progress_module, "time", SimpleNamespace(perf_counter=lambda: now))
    with Progress("stage 1", 10, 0, show=True) as progress:
        now += 2
        progress.count(8, 0.5)
        with progress.not_training():
            now += 30
        speed = progress.speed()
        progress.show({"loss/total": 0.5, "loss/lpips": 0.0}, speed)
        progress.bar.refresh()
    assert (speed["speed/samples_per_s"], speed["speed/data_wait"]) == (4, 0.25)
    assert "lpips" not in capsys.readouterr().err


@pytest.mark.parametrize("raised_by", ["wandb.errors.errors", "somewhere.else"])
def test_a_tracker_that_refuses_is_one_sentence(raised_by: str, tmp_path: Path) -> None:
    class Refusal(Exception):
        __module__ = raised_by

    def refuse(*arguments: object, **options: object) -> None:
        raise Refusal("No API key configured.")

    run = SimpleNamespace(path=tmp_path, writing=nullcontext)
    config = config_from_dict({"tracking": {"trackers": ["wandb"]}}, "it")
    expected, words = (BadInput, r"No API key configured\); run 'wandb login', or set WANDB_MODE=offline")
    if not raised_by.startswith("wandb"):
        expected, words = Refusal, "No API key"  # a bug keeps its traceback
    with pytest.raises(expected, match=words):
        start_trackers(SimpleNamespace(init_trackers=refuse), run, config)


def test_a_tracker_that_is_not_installed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("medsora.training.run.trackers.find_spec", lambda name: None)
    with pytest.raises(BadInput, match=r"wandb, which is not installed: pip install 'medsora\[wandb\]'"):
        usable_trackers(["wandb"])
