"""Scores of a phantom model: right on clips whose answers are known, resumable, honest about bad input."""

from __future__ import annotations

import argparse
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest

from medsora.data.phantom import clip_seed, render_clip
from medsora.errors import BadInput
from medsora.evaluation.conditional import phantom_model
from medsora.evaluation.conditional.phantom_model import (
    compare,
    discriminator_accuracies,
    measure,
    near_copies,
    sample_clips,
)
from medsora.evaluation.metrics.motion import MotionMeasure
from medsora.evaluation.sanity.degrade import blurred, frozen


@pytest.fixture(scope="module")
def phantom() -> np.ndarray:
    return np.stack([render_clip(clip_seed(77, number), 5, 64).video for number in range(36)])


def test_phantom_clips_pass_frozen_and_blurred_ones_do_not(phantom: np.ndarray) -> None:
    made, halves = phantom[:12], (phantom[12:24], phantom[24:])
    outcomes = {}
    for name, clips in {
        "phantom": made,
        "frozen": np.stack([frozen(clip) for clip in made]),
        "blurred": np.stack([blurred(clip, 4.0) for clip in made]),
    }.items():
        table, criteria = compare(clips, halves, {"DIS": MotionMeasure()})
        outcomes[name] = [criterion.met for criterion in criteria]
        assert table["flow_magnitude (DIS)"]["phantom"] > 0
    appearance, speed, _ = zip(*outcomes.values(), strict=True)
    assert appearance == (True, False, False)
    assert speed[:2] == (True, False)


def test_copies_of_training_clips_are_found_even_mirrored(phantom: np.ndarray) -> None:
    training, held_out, new = phantom[:12], phantom[12:24], phantom[24:]
    for made in (training, training[..., ::-1, :]):
        found, criteria = near_copies(made, held_out, list(training))
        assert not any(criterion.met for criterion in criteria)
        assert all(figures["smallest_generated"] < 1e-3 for figures in found.values())
    assert all(criterion.met for criterion in near_copies(new, held_out, list(training))[1])


def test_a_classifier_finds_differences_and_no_more() -> None:
    random = np.random.default_rng(0)
    noise = random.integers(0, 256, (64, 4, 16, 16, 3), np.uint8)
    darker = (noise * 0.4).astype(np.uint8)
    apart = discriminator_accuracies(darker[:32], noise[32:], seeds=2, epochs=8)
    alike = discriminator_accuracies(noise[:32], noise[32:], seeds=2, epochs=4)
    assert min(apart) == 1.0
    assert max(alike) < 0.85


def test_a_classifier_that_is_wrong_about_held_out_clips_fails(monkeypatch: pytest.MonkeyPatch) -> None:
    clips, labels, names = np.zeros((4, 2, 8, 8, 3), np.uint8), np.array([0, 1, 0, 1]), ["a", "b"]
    answers = [[0, 1, 0, 0], [0, 1, 0, 1]]  # about held-out clips, then about generated ones
    monkeypatch.setattr(phantom_model, "predicted_labels", lambda *_: np.array(answers.pop(0)))
    found, criteria = phantom_model.label_agreement(None, (clips, labels), (clips, labels), names, 2.0)
    assert [found[key]["agreement"] for key in found] == [0.75, 1.0]
    assert [criterion.met for criterion in criteria] == [False, True]
    assert 0 < found["label agreement"]["low"] < found["label agreement"]["high"]


def arguments(out, **changed) -> argparse.Namespace:
    wanted = {"out": out, "model": "m", "sampler": "ddim", "steps": 2, "guidance": 2.0, "seed": 5}
    return argparse.Namespace(**wanted | changed)


@pytest.fixture
def weights(monkeypatch: pytest.MonkeyPatch) -> dict[str, str]:
    """The digests of the model."""
    digests = {"denoiser": "1"}
    found = SimpleNamespace(digests=lambda: dict(digests))
    monkeypatch.setattr(phantom_model, "find_model", lambda _: found)
    return digests


def flip_a_bit(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)


def test_sampling_goes_on_and_refuses_other_clips(tmp_path, weights) -> None:
    calls = []

    def pipeline(seeds, label, **settings):
        calls.append((list(seeds), label, settings["guidance"]))
        if len(calls) == 2:
            raise KeyboardInterrupt
        return SimpleNamespace(frames=np.stack([np.full((2, 4, 4, 3), seed, np.uint8) for seed in seeds]))

    pipeline.labels = ["a", "b"]
    labels = ["a", "b"] * 5
    with pytest.raises(KeyboardInterrupt):
        sample_clips(pipeline, arguments(tmp_path), labels)
    made = sample_clips(pipeline, arguments(tmp_path), labels)
    assert made[:, 0, 0, 0, 0].tolist() == list(range(5, 15))
    assert [seeds for seeds, *_ in calls] == [list(range(5, 13)), [13, 14], [13, 14]]
    assert calls[2][1:] == (["a", "b"], 2.0)
    flip_a_bit(tmp_path / "clips" / "00000.npz")
    assert np.array_equal(sample_clips(pipeline, arguments(tmp_path), labels), made)
    assert len(calls) == 4, "damaged clips are sampled again"
    more = sample_clips(pipeline, arguments(tmp_path), [*labels, "a"])  # the last batch was not a whole one
    assert more[:, 0, 0, 0, 0].tolist() == list(range(5, 16))
    with pytest.raises(BadInput, match="other settings"):
        sample_clips(pipeline, arguments(tmp_path, guidance=3.0), labels)
    weights["denoiser"] = "2"
    with pytest.raises(BadInput, match="another model"):
        sample_clips(pipeline, arguments(tmp_path), labels)


@pytest.mark.parametrize(
    ("changed", "message"),
    [({"videos": 3}, "at least 16 clips"), ({"training": True}, "holds no phantom clips")],
)
def test_what_cannot_be_measured_is_refused_before_any_work(tmp_path, changed, message) -> None:
    if changed.get("training"):
        changed = {"training": tmp_path}
    options = arguments(
        tmp_path, **{"videos": 200, "training": None, "raft": None, "polyp_size": None} | changed
    )
    with pytest.raises(BadInput, match=message):
        measure(options)
