"""medsora.studies.equal_cost: trials, turns of equal minutes, arithmetic, resuming, the page."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from medsora.config.load import save_config
from medsora.errors import BadInput, Interrupted
from medsora.runtime.files import END_MARK
from medsora.studies import ablate, command, equal_cost, scores
from medsora.studies.equal_cost import EqualCost
from medsora.studies.scores import Scoring
from tests.support import tiny_training as tiny

SYSTEMS = ["tiny", "tiny:denoiser.scan=raster"]
STEP_MIN, START_MIN, EVALUATION_MIN = 0.5, 0.25, 1.0
RATES = ["0.001", "0.002"]


class Runs:
    """Stands for the processes of runs: their logs and checkpoints, without any training."""

    def __init__(self) -> None:
        self.words: list[list[str]] = []
        self.stop_after = 10_000
        self.now_min = 0.0
        self.diverges = "none"  # beginning of the learning rate whose runs fail
        self.not_finite = "none"  # folder of a run whose sampling fails

    def monotonic(self) -> float:
        return 60 * self.now_min

    def launch(self, words: list[str], *, timed: bool = False, module: str = "medsora") -> int:
        if len(self.words) == self.stop_after:
            raise Interrupted("saved; run the same command to resume.")
        self.words.append(list(words))
        options = dict(word.split("=", 1) for word in words if "=" in word and not word.startswith("-"))
        folder = Path(options.get("run.dir", "."), options.get("run.name", "."), "dit-tiny")
        if words[0] == "sample":
            if self.not_finite in words[words.index("--out") + 1]:
                return ablate.FAILED
            Path(words[words.index("--out") + 1]).mkdir(parents=True)
        elif words[0] == "evaluate":
            raster = "raster" in words[words.index("--fake") + 1]
            self.evaluate(Path(words[words.index("--out") + 1]), 3.0 if raster else 2.0)
        elif words[0] == "train-dit":
            if f"lr: {self.diverges}" in options["train_dit.phases"]:
                return ablate.FAILED
            self.train(folder, options, words[words.index("--time-limit") + 1] if timed else None)
        return ablate.INTERRUPTED if timed else 0

    @staticmethod
    def evaluate(out: Path, flow: float) -> None:
        out.mkdir(parents=True)
        results = {
            "distances": {"flow_magnitude_distance": {"value": flow - 1.5}},
            "scores": {"flow_magnitude": {"generated": flow, "real": 1.5}},
        }
        (out / "results.json").write_text(json.dumps(results))

    def train(self, folder: Path, options: dict[str, str], limit: str | None) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        (folder / "pipeline.json").write_text("{}")
        log = folder / "log.jsonl"
        done = [json.loads(line) for line in log.read_text().splitlines()] if log.exists() else []
        step = max((line["step"] for line in done), default=0)
        elapsed = max((line["speed/elapsed_s"] for line in done), default=0.0)
        most = options["train_dit.max_steps"]
        steps = (
            int((float(limit) - START_MIN) / STEP_MIN + 1e-6)
            if limit is not None
            else max(0, int(most) - step)
        )
        self.now_min += START_MIN + steps * STEP_MIN
        with log.open("a") as file:
            for k in range(1, steps + 1):
                elapsed += 60 * STEP_MIN
                line = {"step": step + k, "loss/total": 1.0, "speed/elapsed_s": elapsed}
                file.write(json.dumps(line) + "\n")
                if limit is not None and (step + k) % int(options["train_dit.eval_every"]) == 0:
                    elapsed += 60 * EVALUATION_MIN
            if limit is None:
                rate = float(options["train_dit.phases"].partition("lr: ")[2].partition(",")[0])
                end = {"step": step + steps, "held_out/clip_mse": rate, "speed/elapsed_s": 9e9}
                file.write(json.dumps(end) + "\n")
        (folder / "step.txt").write_text(str(step + steps))
        (folder / "max_steps.txt").write_text(most)


@pytest.fixture
def runs(clips: Path, vae_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Runs:
    monkeypatch.chdir(tmp_path)
    values = tiny.tiny_config(
        tmp_path, clips, vae__path=str(vae_folder), alignment__weight=0, run__dir="runs", cache__dir="cache"
    )
    save_config(values, tmp_path / "a.yaml")
    found = Runs()
    monkeypatch.setattr(ablate, "launch", found.launch)
    monkeypatch.setattr(ablate, "monotonic", found.monotonic)
    monkeypatch.setattr(equal_cost, "check_phantom", lambda config: None)
    monkeypatch.setattr(ablate, "check_phantom", lambda config: None)
    monkeypatch.setattr(scores, "real_clips", lambda config, count: Path("real"))
    monkeypatch.setattr(ablate, "newest_complete", lambda folders, warn: folders)
    monkeypatch.setattr(ablate, "checkpoint_folders", lambda folder: folder.parent)
    monkeypatch.setattr(ablate, "checkpoint_step", lambda run: int((run / "step.txt").read_text()))

    def previous(folder: Path) -> object:
        if not (folder / "max_steps.txt").is_file():
            return None
        most = (folder / "max_steps.txt").read_text()
        stage = type("Stage", (), {"max_steps": None if most == "null" else int(most)})
        return type("Saved", (), {"train_dit": stage})

    monkeypatch.setattr(ablate, "previous_config", previous)
    return found


def study(*more: str) -> None:
    words = ["--config", "a.yaml", "--systems", *SYSTEMS, "--rates", *RATES, "--out", "study", "--seeds", "2"]
    budget = ["--minutes", "4", "--segment", "2", "--steps", "3", "--trial-steps", "2", "--clips", "4"]
    command.main(["equal-cost", *words, *budget, "--hours", "2", *more])


def turns(runs: Runs) -> list[tuple[str, float]]:
    """Whose turn it was and the time limit, in order."""
    return [
        (
            next(word for word in words if word.startswith("run.name=")),
            float(words[words.index("--time-limit") + 1]),
        )
        for words in runs.words
        if "--time-limit" in words
    ]


def test_systems_take_turns_until_each_has_had_its_minutes(
    runs: Runs, capsys: pytest.CaptureFixture[str]
) -> None:
    page = Path("comparison.md")
    page.write_text(f"before\n{command.PAGE_BEGIN}\nthe former table\n{END_MARK}\nafter\n")
    study("--page", str(page))
    names = [name.removeprefix("run.name=").rpartition("-seed-") for name, _ in turns(runs)]
    plain, raster = names[0][0], names[1][0]
    assert plain == "tiny"
    assert raster.startswith("tiny-denoiser.scan=raster")
    of_first = [name for name, _, seed in names if seed == "0"]
    assert of_first[:4] == [plain, raster, plain, raster], "in turns, none trains on before the other"
    for name in (plain, raster):
        for seed in (0, 1):
            lines = Path(f"study/minutes/{name}-seed-{seed}/dit-tiny/log.jsonl").read_text().splitlines()
            trained = [json.loads(line) for line in lines if "loss/total" in line]
            assert trained[-1]["speed/elapsed_s"] == pytest.approx(4 * 60), "without starts and evaluation"
            assert trained[-1]["step"] == 4 / STEP_MIN, "no evaluation between steps counts as training"
    chosen = [word for words in runs.words for word in words if word.startswith("train_dit.phases")]
    assert "lr: 1.000000e-03" in chosen[-1], "the rate of the least held-out error"

    results = json.loads(Path("study/results.json").read_text())
    assert results["rates"] == dict.fromkeys(SYSTEMS, 0.001)
    for budget in ("minutes", "steps"):
        difference = results[budget]["differences"][SYSTEMS[1]]["clips/flow_magnitude_distance"]
        assert (difference["mean"], difference["seeds"]) == (1.0, 2)
    text = page.read_text()
    assert text.startswith("before\n")
    assert text.endswith("\nafter\n")
    assert "### Equal minutes" in text
    assert "### Equal steps" in text
    assert "the former table" not in text
    assert "+1 (+1 … +1), worse" in capsys.readouterr().out

    runs.words.clear()
    study()
    assert runs.words == [], "all of it is there"


def test_a_trial_that_diverges_leaves_its_rate_out(runs: Runs, capsys: pytest.CaptureFixture[str]) -> None:
    runs.diverges = "1.0"
    study("--seeds", "1")
    assert json.loads(Path("study/results.json").read_text())["rates"] == dict.fromkeys(SYSTEMS, 0.002)
    assert "tiny at 0.001, seed 1" in capsys.readouterr().err
    runs.diverges = ""
    with pytest.raises(BadInput, match="no trial of tiny came to a finite error"):
        study("--out", "other")


def test_a_run_whose_sampling_fails_is_named_after_all_others(
    runs: Runs, capsys: pytest.CaptureFixture[str]
) -> None:
    runs.not_finite = "minutes/tiny-seed-0"
    with pytest.raises(SystemExit) as left:
        study()
    assert left.value.code == ablate.FAILED
    assert "1 of the runs failed (see above): tiny, seed 0 (equal minutes)" in capsys.readouterr().err
    differences = json.loads(Path("study/results.json").read_text())["steps"]["differences"]
    assert differences[SYSTEMS[1]]["clips/flow_magnitude_distance"]["seeds"] == 2


def test_a_study_that_was_stopped_goes_on_with_its_minutes(runs: Runs) -> None:
    runs.stop_after = 8  # four trials, two caches, the first turn of both
    with pytest.raises(Interrupted):
        study()
    assert len(turns(runs)) == 2
    runs.stop_after = 10_000
    study()
    log = Path("study/minutes/tiny-seed-0/dit-tiny/log.jsonl").read_text().splitlines()
    trained = [json.loads(line) for line in log if "loss/total" in line]
    assert [line["step"] for line in trained] == list(range(1, 9)), "four minutes, no step twice"


def test_a_folder_of_other_minutes_is_refused(runs: Runs) -> None:
    study()
    with pytest.raises(BadInput, match=r"minutes 4\.0, not 3\.0; take another --out"):
        study("--minutes", "3")


def test_the_arithmetic_counts_every_part_and_is_kept_to(
    runs: Runs, capsys: pytest.CaptureFixture[str]
) -> None:
    study("--dry-run")
    lines = capsys.readouterr().out.splitlines()
    assert runs.words == []
    assert "equal minutes: 2 systems x 2 seeds x 4 min = 16.0 min" in lines
    assert "clips: 32 sampled and scored (0.6 s) = 0.3 min" in lines
    assert "starts of 40 processes (20 s) = 13.3 min" in lines
    parts = [float(line.rpartition("= ")[2].split()[0]) for line in lines[:5]]
    assert f"in all {sum(parts):.0f} min of 120" in lines[5]
    assert lines[-1] == "ready"
    with pytest.raises(BadInput, match=r"takes \d+ minutes, more than --hours 0\.1") as refusal:
        study("--hours", "0.1")
    assert "\n" not in str(refusal.value)
    with pytest.raises(BadInput, match=r"tiny 30\.00 s.* more|more than --hours 0\.55"):
        study("--hours", "0.55")  # enough by what is assumed, not by the speed of the trials
    assert {words[0] for words in runs.words} == {"train-dit"}
    assert len(runs.words) == 4, "nothing but the trials was trained"


@pytest.mark.parametrize(
    ("more", "sentence"),
    [
        (["--systems", "tiny", "tiny"], "--systems names tiny twice"),
        (["--systems", "huge"], "huge"),
        (["--systems", "medsora-endora-tiny"], "medsora-endora-tiny"),
        (["--systems", "tiny:denoiser.scan=zigzag"], "zigzag"),
        (["--rates", "0"], "--rates is 0.0"),
        (["--segment", "0"], "--segment is 0.0"),
        (["--clips", "1"], "--clips is 1 but must be 4 to"),
        (["--seeds", "21"], "--seeds is 21"),
        (["--page", "gone.md"], "gone.md"),
    ],
)
def test_bad_input_is_one_sentence(runs: Runs, more: list[str], sentence: str) -> None:
    with pytest.raises(BadInput, match=sentence) as refusal:
        study(*more)
    assert "\n" not in str(refusal.value)
    assert runs.words == []


def test_the_default_systems_are_those_of_their_names() -> None:
    study = EqualCost(
        config="phantom",
        overrides=("vae.path=base",),
        systems=("medsora-tiny", "endora-tiny"),
        rates=(1e-5,),
        trial_steps=1,
        minutes=1.0,
        segment=1.0,
        steps=1,
        seeds=(0,),
        scoring=Scoring(4),
        hours=1.0,
        folder=Path("study"),
    )
    counts = study.check()
    assert counts == {"medsora-tiny": 4_184_576, "endora-tiny": 4_168_544} or (
        0.97 < counts["endora-tiny"] / counts["medsora-tiny"] < 1.03
    )
    assert study.variant("medsora-S", 1e-5).config.denoiser.preset == "S"
    trials = study.trials()
    assert trials.seeds == (1,), "no seed that is compared"
    phase = trials.config_of(trials.variants[0], 1).train_dit.phases[0]
    assert (phase.lr, phase.batch) == (1e-5, 8)
