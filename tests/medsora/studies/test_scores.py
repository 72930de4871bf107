"""medsora.studies.scores: which commands measure a run's clips, what is read of them, what is kept."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from medsora.config.load import load_config
from medsora.config.schema import STAGE_1, STAGE_2
from medsora.errors import BadInput
from medsora.evaluation.conditional.fresh_phantom import CLASSIFIER_RECIPE
from medsora.studies.scores import LABELS, Scoring, check_phantom, read_scores


class Launched:
    """Notes commands and writes what they would leave."""

    def __init__(self, results: dict[str, object]) -> None:
        self.results, self.words = results, []

    def __call__(self, words: list[str], *, module: str = "medsora") -> int:
        self.words.append([module, *words])
        if words[0] != "sample":
            out = Path(words[words.index("--out") + 1])
            out.mkdir(parents=True, exist_ok=True)
            of_labels = {"classifier_recipe": CLASSIFIER_RECIPE} if module == LABELS else {}
            (out / "results.json").write_text(json.dumps(self.results | of_labels))
        return int(module == LABELS)  # the classifier's criteria may not be met


def test_polyps_that_a_vae_keeps_are_scored_once(tmp_path: Path) -> None:
    through = "judge on the same, through the VAE"
    launch = Launched({through: 0.9, f"{through}, polyp": 0.75, "judge on phantom clips (held out)": 1.0})
    config = load_config("phantom")
    for _ in range(2):
        assert Scoring(clips=6).score(tmp_path / "run" / "vae", config, STAGE_1, launch)
    (words,) = launch.words
    assert words[0] == LABELS
    assert words[words.index("--held-out-clips") + 1] == "6"
    assert words[words.index("--vae") + 1] == str(tmp_path / "run" / "vae")
    assert read_scores(tmp_path / "run") == {"vae/agreement": 0.9, "vae/polyps_kept": 0.75}


@pytest.mark.parametrize("former", [{"classifier_recipe": CLASSIFIER_RECIPE - 1}, {}])
def test_scores_of_another_classifier_are_computed_again(tmp_path: Path, former: dict[str, int]) -> None:
    results = {"agreement": 0.77} | former
    (tmp_path / "run" / "labels").mkdir(parents=True)
    (tmp_path / "run" / "labels" / "results.json").write_text(json.dumps(results))
    assert read_scores(tmp_path / "run") == {}, "one table would hold both"
    with pytest.raises(BadInput, match="scoring left no"):
        Scoring(6).score(tmp_path / "run" / "vae", load_config("phantom"), STAGE_1, lambda *_, **__: 1)
    launch = Launched({"agreement": 0.99})
    assert Scoring(6).score(tmp_path / "run" / "vae", load_config("phantom"), STAGE_1, launch)
    assert read_scores(tmp_path / "run") == {"clips/agreement": 0.99}


@pytest.mark.parametrize("labels", [[], ["neither", "polyp"]], ids=["no labels", "labels"])
def test_motion_and_labels_of_sampled_clips_are_scored(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, labels: list[str]
) -> None:
    monkeypatch.setattr("medsora.studies.scores.real_clips", lambda config, count: tmp_path / "real")
    folder = tmp_path / "run" / "dit-tiny"
    folder.mkdir(parents=True)
    (folder / "pipeline.json").write_text(json.dumps({"labels": labels}))
    results = {
        "distances": {"flow_magnitude_distance": {"value": 0.5}, "unknown_distance": {"value": 1.0}},
        "scores": {
            "flow_magnitude": {"generated": 1.0, "real": 1.25},
            "warping_error": {"generated": 3.0, "real": 2.0},
        },
        "agreement": 0.8,
    }
    launch = Launched(results)
    assert Scoring(clips=6).score(folder, load_config("phantom"), STAGE_2, launch)
    assert [words[:2] for words in launch.words] == [
        ["medsora", "sample"],
        ["medsora", "evaluate"],
        *([[LABELS, "--model"]] if labels else []),
    ]
    agreement = {"clips/agreement": 0.8} if labels else {}
    assert read_scores(tmp_path / "run") == agreement | {
        "clips/flow_magnitude": 1.0,
        "clips/mean_flow_error": 0.25,
        "clips/flow_magnitude_distance": 0.5,
        "clips/warping_error": 3.0,
    }


def test_other_clips_than_the_phantoms_and_lost_results_are_refused(tmp_path: Path) -> None:
    with pytest.raises(BadInput, match=r"data\.root names other videos"):
        check_phantom(load_config("phantom", ["data.root=videos"]))
    with pytest.raises(BadInput, match="scoring left no"):
        Scoring(6).score(tmp_path / "vae", load_config("phantom"), STAGE_1, lambda *_, **__: 0)


def test_a_part_of_the_clips_is_not_scored(tmp_path: Path) -> None:
    """Sampling that fails in a later batch leaves the clips of the earlier ones."""
    launched: list[str] = []

    def launch(words: list[str], *, module: str = "medsora") -> int:
        launched.append(words[0])
        return 1

    assert not Scoring(6).score(tmp_path / "run" / "dit-tiny", load_config("phantom"), STAGE_2, launch)
    assert launched == ["sample"]
    assert read_scores(tmp_path / "run") == {}
