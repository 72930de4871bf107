"""Conditional sampling: labels, first frames that are kept exactly, films longer than a clip."""

from __future__ import annotations

import json
import logging
from pathlib import Path

import numpy as np
import pytest
import torch

from medsora.data.reading.pixels import frames_to_video
from medsora.data.reading.video_io import write_video
from medsora.data.sheet import save_image
from medsora.errors import BadInput
from medsora.sampler import make_scheduler, sample
from medsora.sampling.conditions import FilmPlan, plan_film, read_first_frames
from medsora.sampling.pipeline import MedSoraPipeline
from medsora.sampling.synthetic import synthetic_tags
from medsora.saved.find import find_model
from tests.support.tiny_pipeline import GEOMETRY, tiny_denoiser, tiny_vae

NAMES = ["bleeding", "polyp"]
CHUNK = 8  # frames that the causal VAE encodes together


@pytest.fixture(scope="module")
def pipeline() -> MedSoraPipeline:
    geometry = GEOMETRY | {"frames": 17}
    pipeline = MedSoraPipeline(
        tiny_denoiser(classes=2), tiny_vae(), **geometry, labels=NAMES, given_frames=[1, 9]
    )
    pipeline.set_progress_bar_config(disable=True)
    return pipeline


@pytest.fixture(scope="module")
def pictures() -> np.ndarray:
    return np.random.default_rng(0).integers(0, 256, (9, 32, 16, 3), dtype=np.uint8)


def latents(pipeline: MedSoraPipeline, **options) -> torch.Tensor:
    options = {"num_inference_steps": 3, "seeds": [1, 2], "output_type": "latent"} | options
    return pipeline(**options).frames


# Labels


def test_labels_are_saved_and_followed(pipeline: MedSoraPipeline, tmp_path: Path) -> None:
    pipeline.save_pretrained(tmp_path / "model")
    loaded = MedSoraPipeline.from_pretrained(tmp_path / "model")
    assert loaded.labels == NAMES
    assert list(loaded.config.given_frames) == [1, 9]
    polyps = latents(pipeline, label="polyp")
    assert torch.equal(latents(loaded, label="polyp"), polyps)
    assert not torch.allclose(polyps, latents(pipeline, label="bleeding"))
    assert not torch.allclose(polyps, latents(pipeline))
    assert "bleeding, polyp" in loaded.card().markdown()


def test_each_video_can_have_its_own_label_at_any_batch_size(pipeline: MedSoraPipeline) -> None:
    both = latents(pipeline, label=["polyp", "bleeding"], guidance=2.0)
    one_by_one = latents(pipeline, label=["polyp", "bleeding"], guidance=2.0, batch_size=1)
    torch.testing.assert_close(both, one_by_one, atol=1e-4, rtol=1e-4)
    torch.testing.assert_close(
        both[1:], latents(pipeline, label="bleeding", guidance=2.0, seeds=[2]), atol=1e-4, rtol=1e-4
    )


def test_guidance_1_is_the_conditional_model_itself(
    pipeline: MedSoraPipeline, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Step by step by the model alone, without tables, and with one forward of the videos' own number."""
    model = pipeline.denoiser
    scheduler = make_scheduler("ddim", 3)
    noise = torch.stack([torch.randn(5, 4, 4, 2, generator=torch.Generator().manual_seed(s)) for s in (1, 2)])
    labels = torch.tensor([1, 1])
    model.eval()
    expected = sample(lambda z, t: model(z, t, labels=labels).eps, noise, scheduler)
    forward, sizes = model.forward, []

    def watched(z, *given, **options):
        sizes.append(len(z))
        return forward(z, *given, **options)

    monkeypatch.setattr(model, "forward", watched)
    found = latents(pipeline, label="polyp", guidance=1.0)
    torch.testing.assert_close(found, expected, atol=1e-4, rtol=1e-4)
    assert torch.equal(found, latents(pipeline, label="polyp"))
    latents(pipeline, label="polyp", guidance=1.5)
    assert sizes == [2] * 6 + [4] * 3


def test_guidance_0_ignores_the_label(pipeline: MedSoraPipeline) -> None:
    """In the variance, too, which ddpm takes from the denoiser."""
    unconditional = latents(pipeline, sampler="ddpm")
    found = latents(pipeline, sampler="ddpm", label="polyp", guidance=0.0)
    torch.testing.assert_close(found, unconditional, atol=1e-4, rtol=1e-4)
    assert not torch.allclose(latents(pipeline, sampler="ddpm", label="polyp"), unconditional, atol=1e-2)


@pytest.mark.parametrize(
    ("given", "sentence"),
    [
        ({"label": "ulcer"}, "there is no label 'ulcer'; this model has bleeding, polyp"),
        ({"label": ["polyp"]}, "1 labels do not fit 2 videos"),
        ({"guidance": 2.0}, "no label is given"),
        ({"label": "polyp", "guidance": -1}, "between 0 and 1000"),
    ],
)
def test_wrong_labels_are_one_sentence(pipeline: MedSoraPipeline, given: dict, sentence: str) -> None:
    with pytest.raises(BadInput, match=sentence):
        latents(pipeline, **given)


def test_a_model_without_labels_reports_it() -> None:
    plain = MedSoraPipeline(tiny_denoiser(), tiny_vae(), **GEOMETRY)
    assert plain.labels == []
    with pytest.raises(BadInput, match="trained without labels"):
        plain(label="polyp")
    with pytest.raises(BadInput, match="trained with 0 labels, but the model names 2"):
        MedSoraPipeline(tiny_denoiser(), tiny_vae(), **GEOMETRY, labels=NAMES)


@pytest.mark.parametrize("labels", ["polyp", ["a", 3], ["a\nb"]])
def test_a_folder_with_odd_labels_is_refused(
    pipeline: MedSoraPipeline, tmp_path: Path, labels: object
) -> None:
    pipeline.save_pretrained(tmp_path)
    index = tmp_path / "model_index.json"
    index.write_text(json.dumps(json.loads(index.read_text()) | {"labels": labels}))
    with pytest.raises(BadInput, match=r"labels (must be a list of plain|is .* but must be a printable)"):
        find_model(tmp_path)


# First frames


@pytest.mark.parametrize("count", [1, 9])
@pytest.mark.parametrize("sampler", ["ddim", "dpmpp", "unipc"])
def test_given_frames_keep_their_latents_exactly(
    pipeline: MedSoraPipeline, pictures: np.ndarray, count: int, sampler: str
) -> None:
    given = pictures[:count]
    with torch.no_grad():
        encoded = pipeline.vae.encode(frames_to_video(given)[None])
    states = []
    found = latents(
        pipeline, first_frames=given, sampler=sampler, callback=lambda *step: states.append(step[2])
    )
    kept = encoded.shape[1]
    assert kept == {1: 1, 9: 3}[count]
    assert torch.equal(found[:, :kept], encoded.expand(2, -1, -1, -1, -1))
    assert all(torch.equal(state[:, :kept], found[:, :kept]) for state in states)
    free = latents(pipeline, sampler=sampler)
    assert not torch.allclose(found[:, kept:], free[:, kept:], atol=1e-3)  # what follows heeds it


def test_the_denoiser_receives_timesteps_of_clean_latents(
    pipeline: MedSoraPipeline, pictures: np.ndarray, monkeypatch: pytest.MonkeyPatch
) -> None:
    forward, seen = pipeline.denoiser.forward, []

    def watched(z, t, *given, **options):
        seen.append((t.tolist(), z[:, 0].clone()))
        return forward(z, t, *given, **options)

    monkeypatch.setattr(pipeline.denoiser, "forward", watched)
    found = latents(pipeline, first_frames=pictures[:1], label="polyp", guidance=3.0, seeds=[1])
    assert [t for t, _ in seen] == [[[0, t, t, t, t]] * 2 for t in (999, 666, 332)]
    assert all(torch.equal(first, found[:, 0].expand(2, -1, -1, -1)) for _, first in seen)


def test_each_video_can_begin_with_its_own_frame(pipeline: MedSoraPipeline, pictures: np.ndarray) -> None:
    own = latents(pipeline, first_frames=np.stack([pictures[:1], pictures[3:4]]), batch_size=1)
    for k, picture in enumerate((pictures[:1], pictures[3:4])):
        alone = latents(pipeline, first_frames=picture, seeds=[k + 1])
        torch.testing.assert_close(own[k : k + 1], alone, atol=1e-4, rtol=1e-4)


def test_a_picture_of_another_size_is_fitted_and_reported(
    pipeline: MedSoraPipeline, caplog: pytest.LogCaptureFixture
) -> None:
    large = np.full((1, 90, 50, 3), 200, np.uint8)
    with caplog.at_level(logging.WARNING):
        fitted = latents(pipeline, first_frames=large)
    assert "the first frame is 90x50 pixels and is fitted to the clip's 32x16" in caplog.text
    assert torch.equal(fitted, latents(pipeline, first_frames=np.full((1, 32, 16, 3), 200, np.uint8)))


def test_first_frames_that_do_not_fit(pipeline: MedSoraPipeline, pictures: np.ndarray) -> None:
    for given, sentence in (
        ({"first_frames": pictures[:2]}, "trained to begin with 1 or 9"),
        ({"first_frames": pictures, "frames": 9}, "cannot begin with 9 given ones"),
        ({"first_frames": pictures[:1], "frames": 16}, "sample 9 or 17 frames"),
        ({"first_frames": pictures[:1].astype(float)}, "must be uint8"),
        ({"first_frames": np.stack([pictures[:1]] * 3)}, "each of 2 videos"),
    ):
        with pytest.raises(BadInput, match=sentence):
            latents(pipeline, **given)
    plain = MedSoraPipeline(tiny_denoiser(), tiny_vae(), **GEOMETRY | {"frames": 17})
    with pytest.raises(BadInput, match="first_frame_prob is 0"):
        plain(first_frames=pictures[:1])


def test_frames_come_from_a_picture_or_the_end_of_a_video(tmp_path: Path, pictures: np.ndarray) -> None:
    save_image(tmp_path / "a.png", pictures[0])
    write_video(tmp_path / "v.mkv", pictures, 8, lossless=True)
    assert np.array_equal(read_first_frames(tmp_path / "a.png", [1, 9], 17, CHUNK), pictures[:1])
    assert np.array_equal(read_first_frames(tmp_path / "v.mkv", [1, 9], 17, CHUNK), pictures)
    assert np.array_equal(read_first_frames(tmp_path / "v.mkv", [1, 9], 9, CHUNK), pictures[-1:])
    assert np.array_equal(read_first_frames(tmp_path / "v.mkv", [1, 17], 25, CHUNK), pictures[-1:])
    assert np.array_equal(read_first_frames(tmp_path / "v.mkv", [1, 5], 16, 1), pictures[-5:])
    with pytest.raises(BadInput, match="gives 1 frame"):
        read_first_frames(tmp_path / "a.png", [9], 17, CHUNK)
    (tmp_path / "b.png").write_bytes(b"none")
    with pytest.raises(BadInput, match="first frame cannot be read"):
        read_first_frames(tmp_path / "b.png", [1], 17, CHUNK)
    with pytest.raises(BadInput, match="there is no file"):
        read_first_frames(tmp_path / "c.png", [1], 17, CHUNK)


def test_a_video_is_continued_at_the_models_rate_only(tmp_path: Path, pictures: np.ndarray) -> None:
    write_video(tmp_path / "v.mkv", pictures, 25, lossless=True)
    save_image(tmp_path / "a.png", pictures[0])
    for number, frame in enumerate(pictures):
        save_image(tmp_path / "folder" / f"{number}.png", frame)
    assert len(read_first_frames(tmp_path / "v.mkv", [1, 9], 17, CHUNK, rate=25.4)) == 9
    assert len(read_first_frames(tmp_path / "v.mkv", [1, 9], 17, CHUNK)) == 9
    for rate in (10, 12.5, 24, 30):
        with pytest.raises(BadInput, match=f"has 25 frames per second, but .* trained at {rate:g}:"):
            read_first_frames(tmp_path / "v.mkv", [1, 9], 17, CHUNK, rate=rate)
        assert len(read_first_frames(tmp_path / "v.mkv", [1], 17, CHUNK, rate=rate)) == 1
        assert len(read_first_frames(tmp_path / "a.png", [1, 9], 17, CHUNK, rate=rate)) == 1
        assert len(read_first_frames(tmp_path / "folder", [1, 9], 17, CHUNK, rate=rate)) == 9


def test_what_was_generated_names_the_rate_of_its_frames(tmp_path: Path, pictures: np.ndarray) -> None:
    tags = synthetic_tags("seed 0", {"rate": 10.0})
    write_video(tmp_path / "v.mp4", pictures, 25, metadata=tags)
    assert len(read_first_frames(tmp_path / "v.mp4", [9], 17, CHUNK, rate=10.0)) == 9
    with pytest.raises(BadInput, match="has 10 frames per second"):
        read_first_frames(tmp_path / "v.mp4", [9], 17, CHUNK, rate=25.0)


def test_black_borders_are_cut_off_where_training_cut_them(
    tmp_path: Path, pictures: np.ndarray, caplog: pytest.LogCaptureFixture
) -> None:
    bordered = np.pad(pictures, [(0, 0), (4, 4), (16, 16), (0, 0)])
    save_image(tmp_path / "a.png", bordered[0])
    write_video(tmp_path / "v.mkv", bordered, 8, lossless=True)
    for number, frame in enumerate(bordered):
        save_image(tmp_path / "folder" / f"{number}.png", frame)
    for name, count in (("a.png", 1), ("v.mkv", 9), ("folder", 9)):
        caplog.clear()
        for crop in (None, "none", (0.0, 0.0, 0.0, 0.0)):
            whole = read_first_frames(tmp_path / name, [1, 9], 17, CHUNK, crop=crop)
            assert np.array_equal(whole, bordered[:count])
        assert not caplog.messages
        found = read_first_frames(tmp_path / name, [1, 9], 17, CHUNK, crop="auto")
        assert np.array_equal(found, pictures[:count])
        (message,) = caplog.messages
        assert f"black borders of {tmp_path / name} are cut off" in message
        assert "32x16 of its 40x48 pixels are left" in message


def test_fixed_parts_are_named_because_they_may_be_gone_already(
    tmp_path: Path, pictures: np.ndarray, caplog: pytest.LogCaptureFixture
) -> None:
    """Only what was generated tells whether they are still in it."""
    write_video(tmp_path / "recorded.mkv", pictures, 8, lossless=True)
    crop = (0.1, 0.1, 0.0, 0.0)
    assert np.array_equal(read_first_frames(tmp_path / "recorded.mkv", [9], 17, CHUNK, crop=crop), pictures)
    (message,) = caplog.messages
    assert "trained with data.crop: [0.1, 0.1, 0.0, 0.0]; cut these parts" in message
    tags = synthetic_tags("seed 0", {"crop": list(crop)})
    write_video(tmp_path / "generated.mp4", pictures, 8, metadata=tags)
    read_first_frames(tmp_path / "generated.mp4", [9], 17, CHUNK, crop=crop)
    assert len(caplog.messages) == 1


def test_borders_are_those_of_the_whole_video(tmp_path: Path, pictures: np.ndarray) -> None:
    """Its last frames may be dark where the others are not."""
    dark_end = np.tile(pictures, (3, 1, 1, 1))
    dark_end[18:, :8] = 0
    write_video(tmp_path / "v.mkv", dark_end, 8, lossless=True)
    assert np.array_equal(read_first_frames(tmp_path / "v.mkv", [9], 17, CHUNK, crop="auto"), dark_end[18:])


def test_a_model_without_borders_made_none(tmp_path: Path, pictures: np.ndarray) -> None:
    bordered = np.pad(pictures, [(0, 0), (4, 4), (16, 16), (0, 0)])
    for crop, height in (("auto", 40), ("none", 32)):
        path = tmp_path / f"{crop}.mp4"
        write_video(path, bordered, 8, metadata=synthetic_tags("seed 0", {"crop": crop}))
        assert read_first_frames(path, [9], 17, CHUNK, crop="auto").shape[1] == height


def test_a_folder_is_the_frames_of_one_video(tmp_path: Path, pictures: np.ndarray) -> None:
    videos, mixed, empty = (tmp_path / name for name in ("videos", "mixed", "empty"))
    empty.mkdir()
    save_image(videos / "stray.png", pictures[0])
    write_video(videos / "a.mkv", pictures, 8, lossless=True)
    for number, frame in enumerate(pictures):
        save_image(mixed / f"frame-{number}.png", frame)
    assert len(read_first_frames(mixed, [9], 17, CHUNK)) == 9
    write_video(mixed / "b.mkv", pictures, 8, lossless=True)
    for folder, held in ((videos, "a.mkv"), (mixed, "b.mkv"), (empty, "no pictures")):
        with pytest.raises(BadInput, match=f"{folder} is not the frames of one video .it holds .*{held}"):
            read_first_frames(folder, [1, 9], 17, CHUNK)


# Films


def test_how_a_film_is_made() -> None:
    assert plan_film(64, None, [], CHUNK) == plan_film(64, 64, [], CHUNK) == FilmPlan(64, 64, 0)
    assert plan_film(64, None, [], CHUNK).windows == 1
    assert plan_film(64, 17, [1, 9], CHUNK) == FilmPlan(64, 17, 9)
    assert plan_film(64, 16, [1, 9, 10], 1) == FilmPlan(64, 16, 10)
    assert [FilmPlan(frames, 17, 9).windows for frames in (18, 25, 26, 64)] == [2, 2, 3, 7]
    with pytest.raises(BadInput, match="not trained to begin"):
        plan_film(64, 17, [], CHUNK)
    with pytest.raises(BadInput, match="trained to begin with 9"):
        plan_film(64, 9, [9], CHUNK)


def test_a_film_goes_on_from_its_own_frames(
    pipeline: MedSoraPipeline, pictures: np.ndarray, monkeypatch: pytest.MonkeyPatch
) -> None:
    encode, began = pipeline._encode, []

    def watched(frames: np.ndarray) -> torch.Tensor:
        began.append(frames)
        return encode(frames)

    monkeypatch.setattr(pipeline, "_encode", watched)
    steps = []
    given = {"num_inference_steps": 2, "first_frames": pictures[:1], "output_type": "uint8"}
    options = given | {"frames": 26, "window": 17}
    film = pipeline(seeds=[1, 2], **options, callback=lambda *step: steps.append(step[0])).frames
    assert film.shape == (2, 26, 32, 16, 3)
    assert steps == [0, 1] * 3
    assert [frames.shape[1] for frames in began] == [1, 9, 9]
    window = pipeline(seeds=[1, 2], **given).frames
    assert np.array_equal(film[:, :17], window)
    assert np.array_equal(began[1], window[:, 8:])
    alone = pipeline(seeds=[2], **options).frames
    assert np.abs(alone[0].astype(int) - film[1]).max() <= 2
    with pytest.raises(BadInput, match="no latents of its own"):
        pipeline(frames=26, window=17, output_type="latent")
