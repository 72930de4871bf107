"""medsora.training.cache.latents, medsora.training.cache.prior, medsora.training.open_clips: a file that is
damaged after the check: another clip takes its place, the same one in both caches.
"""

from __future__ import annotations

import logging
import shutil
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest
import torch

from medsora.config.schema import Config
from medsora.data.checking import check
from medsora.data.clips import ClipDataset
from medsora.data.exact_flow import flow_path
from medsora.data.reading.decoding import UnreadableVideo
from medsora.data.reading.video_io import read_frames
from medsora.errors import BadInput
from medsora.training import fill_caches as cache
from medsora.training import open_clips as opening
from medsora.training.cache.latents import LatentCache
from medsora.training.cache.prior import PriorCache
from medsora.training.fill_caches import fill_caches
from medsora.training.schedule import SampleKey
from medsora.training.stage2 import build as dit_build
from medsora.training.stage2.build import build_denoiser_stage, build_prior
from medsora.training.stage2.samples import Stage2Samples
from medsora.vae import FrequencyCompensatedVAE
from tests.medsora.training.cache.test_latents import one_process
from tests.support import tiny_training as tiny
from tests.support.clip_dataset import clip_dataset

BROKEN = 1  # a training clip, each of which is a video of its own


@pytest.fixture
def config(clips: Path, vae_folder: Path, tmp_path: Path) -> Config:
    copy = shutil.copytree(clips, tmp_path / "clips")
    return tiny.tiny_config(
        tmp_path, copy, vae__path=str(vae_folder), cache__latents="disk", cache__prior="disk"
    )


def damage_after_the_check(monkeypatch: pytest.MonkeyPatch, module: ModuleType) -> None:
    """Let `module` open clips of which one is damaged right afterwards."""

    def open_then_damage(*arguments: Any, **options: Any) -> tuple[ClipDataset, ClipDataset]:
        training, held_out = opening.open_clips(*arguments, **options)
        training.videos[BROKEN].source.path.write_bytes(b"")
        return training, held_out

    monkeypatch.setattr(module, "open_clips", open_then_damage)


def entries(config: Config, kind: str, index: int) -> list[dict[str, torch.Tensor]]:
    found = Path(config.cache.dir).glob(f"{kind}-*/*/clip-{index:07d}*")
    files = sorted(found, key=lambda path: path.name)  # plain and flipped lie in folders of their own
    assert files
    return [tiny.load_file(file) for file in files]


def assert_replaced(config: Config, kind: str) -> None:
    ours, theirs, other = (entries(config, kind, index) for index in (BROKEN, BROKEN + 1, BROKEN - 1))
    for mine, its, another in zip(ours, theirs, other, strict=True):
        for key in mine:
            torch.testing.assert_close(mine[key], its[key], rtol=1e-3, atol=1e-3)
            assert not torch.allclose(mine[key], another[key], rtol=1e-3, atol=1e-3)


def test_both_caches_hold_the_same_other_clip(
    config: Config, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    damage_after_the_check(monkeypatch, cache)
    with caplog.at_level(logging.WARNING):
        fill_caches(config)
    assert "is replaced by the next" in caplog.text
    for kind in ("latents", "prior"):
        assert_replaced(config, kind)


def test_a_run_with_caches_goes_on(config: Config, monkeypatch: pytest.MonkeyPatch) -> None:
    damage_after_the_check(monkeypatch, dit_build)
    stage = build_denoiser_stage(config)
    clips = stage.samples.clips
    assert_replaced(config, "latents")
    needed = [n for n in range(500) if stage.samples[SampleKey(n, 0, 0)]["needed"]]
    item = stage.samples[SampleKey(needed[0], 0, BROKEN)]
    other = clips.fixed_clip(BROKEN + 1, flip=item["flipped"], images=())
    assert torch.equal(item["flow_video"], other["video"])
    assert stage.inputs.alignment_targets(stage.samples.collate([item])) is not None
    assert "prior" in stage.samples[SampleKey(needed[0], 0, BROKEN)]


def test_frames_that_do_not_decode_later_leave_no_features_under_their_clip(config: Config) -> None:
    stage = build_denoiser_stage(config)
    samples, video = stage.samples, stage.samples.clips.videos[BROKEN].source.path
    number = next(n for n in range(500) if samples[SampleKey(n, 0, 0)]["needed"])
    content = video.read_bytes()
    video.write_bytes(b"")
    item, other = (samples[SampleKey(number, 0, index)] for index in (BROKEN, BROKEN + 1))
    assert (item["index"], item["name"]) == (BROKEN + 1, other["name"])
    assert torch.equal(item["mean"], other["mean"])
    assert stage.inputs.alignment_targets(samples.collate([item])) is not None
    video.write_bytes(content)
    item, other = (samples[SampleKey(number, 0, index)] for index in (BROKEN, BROKEN + 1))
    assert item["index"] == BROKEN
    assert ("prior" in item, "prior" in other) == (False, True)


def test_a_replaced_clip_has_its_own_label(config: Config) -> None:
    options = {"frames": 16, "interval": 1, "size": 32, "images": 0, "labels": "labels.csv"}
    clips = clip_dataset(config.data.root, **options)
    clips.videos[BROKEN].source.path.write_bytes(b"")
    item = Stage2Samples(config, clips, steps=1000, draw=False)[SampleKey(0, 0, BROKEN)]
    assert item["index"] == BROKEN + 1
    assert item["label"] == clips.label(BROKEN + 1) != clips.label(BROKEN)


def test_a_failed_read_is_not_kept_as_another_clip(config: Config, monkeypatch: pytest.MonkeyPatch) -> None:
    vae = FrequencyCompensatedVAE.from_pretrained(config.vae.path).eval()
    clips = clip_dataset(config.data.root, frames=16, interval=1, size=32, images=2)
    latents, broken = LatentCache(config, clips, vae), clips.videos[BROKEN].source.path

    def refusing(path: Path, *arguments: Any, **options: Any) -> np.ndarray:
        if path == broken:
            raise UnreadableVideo(path, "cannot be read: Stale file handle")
        return read_frames(path, *arguments, **options)

    with monkeypatch.context() as patched:
        patched.setattr(check, "read_frames", refusing)
        with pytest.raises(BadInput, match="Stale file handle; no other clip takes its place in the cache"):
            latents.build(vae, one_process())
    latents.build(vae, one_process())
    ours, theirs = (latents.clip(index, flipped=False)[0] for index in (BROKEN, BROKEN + 1))
    assert not torch.allclose(ours, theirs, rtol=1e-3, atol=1e-3)


def test_a_group_of_joint_images_draws_again(config: Config, caplog: pytest.LogCaptureFixture) -> None:
    config.images.encoding, config.images.count = "packed", 8
    vae = FrequencyCompensatedVAE.from_pretrained(config.vae.path).eval()
    dataset = clip_dataset(config.data.root, frames=16, interval=1, size=32, images=8, holdout=0.2)
    dataset.videos[BROKEN].source.path.write_bytes(b"")
    with caplog.at_level(logging.WARNING):
        groups = [dataset.image_group(8, np.random.default_rng(seed)) for seed in range(4)]
    assert "is drawn again" in caplog.text
    assert all(images.shape == (8, 3, 32, 32) for images, _ in groups)
    assert all(BROKEN not in videos for _, videos in groups)
    latents = LatentCache(config, dataset, vae)
    latents.build(vae, one_process())
    assert latents.joint_images(latents.choose_images(0, 0))[0].shape == (2, 4, 4, 4)


def test_damaged_exact_flow_takes_the_next_clip_too(config: Config) -> None:
    dataset = clip_dataset(config.data.root, frames=16, interval=1, size=32, with_flow=True, flip=False)
    flow_path(dataset.videos[BROKEN].source.path).write_bytes(b"not what it was")
    assert dataset[BROKEN]["index"] == BROKEN + 1


def test_another_exact_flow_has_another_cache(config: Config) -> None:
    config.flow.estimator = "exact"
    prior = build_prior(config, depth=2)

    def key(with_flow: bool) -> str:
        dataset = clip_dataset(config.data.root, frames=16, interval=1, size=32, with_flow=with_flow)
        return PriorCache(config, dataset, prior, (4, 2, 2), 32).store.key

    before = key(True), key(False)
    flows = sorted(Path(config.data.root).glob("*.flow.safetensors"))
    shutil.copyfile(flows[1], flows[0])
    after = key(True), key(False)
    assert after[0] != before[0]
    assert after[1] == before[1], "clips without exact flow do not depend on it"
