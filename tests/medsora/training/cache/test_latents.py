"""medsora.training.cache.latents, medsora.training.cache.fingerprint, medsora.training.joint_images: the
cache holds what the VAE would say now, for this VAE and these files, and repairs itself.
"""

from __future__ import annotations

import shutil
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from medsora.training.cache.latents import LatentCache
from medsora.training.joint_images import image_moments
from medsora.vae import FrequencyCompensatedVAE
from tests.support import tiny_training as tiny
from tests.support.clip_dataset import clip_dataset


def one_process(rank: int = 0, processes: int = 1) -> Any:
    return SimpleNamespace(
        process_index=rank,
        num_processes=processes,
        is_local_main_process=False,
        device=torch.device("cpu"),
        wait_for_everyone=lambda: None,
    )


@pytest.fixture(scope="module")
def vae(vae_folder: Path) -> FrequencyCompensatedVAE:
    return FrequencyCompensatedVAE.from_pretrained(vae_folder).eval()


def open_cache(
    work: Path,
    clips: Path,
    vae: FrequencyCompensatedVAE,
    encoding: str = "single",
    images: int | None = None,
    **changes: Any,
) -> LatentCache:
    count = (8 if encoding == "packed" else 2) if images is None else images
    config = tiny.tiny_config(work, clips, images__encoding=encoding, images__count=count, **changes)
    dataset = clip_dataset(clips, frames=16, interval=1, size=32, images=config.images.count, holdout=0.2)
    return LatentCache(config, dataset, vae)


def test_cached_latents_are_those_of_the_clip(tmp_path: Path, clips: Path, vae: Any) -> None:
    cache = open_cache(tmp_path, clips, vae)
    cache.build(vae, one_process())
    for index in range(len(cache.clips)):
        for flip in (False, True):
            clip = cache.clips.load(cache.clips.fixed_choice(index, flip=flip))
            with torch.no_grad():
                expected = vae.encode_moments(clip["video"][None, :16])
                alone = vae.encode_moments(clip["video"][None, :1])
            for part, moment in zip(cache.clip(index, flip), expected, strict=True):
                torch.testing.assert_close(part, moment[0], rtol=1e-4, atol=1e-5)
            entry = cache.store.get(f"clip-{index:07d}")
            torch.testing.assert_close(entry["image_mean"][int(flip)], alone[0][0], rtol=1e-4, atol=1e-5)


def test_single_images_come_from_other_videos(tmp_path: Path, clips: Path, vae: Any) -> None:
    cache = open_cache(tmp_path, clips, vae)
    cache.build(vae, one_process())
    own = [entry for flip in (0, 1) for entry in [cache.store.get("clip-0000000")["image_mean"][flip]]]
    for sample in range(20):
        mean, logvar = cache.joint_images(cache.choose_images(0, sample))
        assert mean.shape == logvar.shape == (2, 4, 4, 4)
        assert not any(torch.equal(image, mine[0]) for image in mean for mine in own)
    assert cache.choose_images(0, 3) == cache.choose_images(0, 3)


def test_packed_images_are_groups_of_eight(tmp_path: Path, clips: Path, vae: Any) -> None:
    cache = open_cache(tmp_path, clips, vae, "packed")
    cache.build(vae, one_process())
    seen = []
    image_group = cache.clips.image_group
    cache.clips.image_group = lambda *drawn: seen.append(image_group(*drawn)) or seen[-1]
    entry = cache._encode_group(vae, 1, torch.device("cpu"))
    images, videos = seen[0]
    with torch.no_grad():
        expected, _ = image_moments(vae, images[None], "packed")
    assert images.shape == (8, 3, 32, 32)
    assert entry["videos"].tolist() == videos
    stored = cache.store.get("group-00001")["image_mean"]
    assert torch.equal(entry["image_mean"], stored)
    torch.testing.assert_close(stored[0], expected[0], rtol=1e-4, atol=1e-5)
    assert cache.joint_images(cache.choose_images(0, 5))[0].shape == (2, 4, 4, 4)


@pytest.mark.parametrize("encoding", ["single", "packed"])
def test_pictures_are_those_whose_latents_are_kept(
    tmp_path: Path, clips: Path, vae: Any, encoding: str
) -> None:
    cache = open_cache(tmp_path, clips, vae, encoding)
    cache.build(vae, one_process())
    every = cache.every_image()
    assert {images for sample in range(20) for images in cache.choose_images(0, sample)} <= set(every)
    for images in every[:4]:
        pictures, kept = cache.pictures(images), cache.joint_images([images])
        with torch.no_grad():
            moments = image_moments(vae, pictures[None], encoding)
        for part, moment in zip(kept, moments, strict=True):
            torch.testing.assert_close(part, moment[0], rtol=1e-4, atol=1e-5)
        assert len(kept[0]) == cache.entry_latents


@pytest.mark.parametrize("flip", [True, False])
@pytest.mark.parametrize("encoding", ["single", "packed"])
def test_joint_images_are_mirrored_only_if_clips_are(
    tmp_path: Path, clips: Path, vae: Any, encoding: str, flip: bool
) -> None:
    cache = open_cache(tmp_path, clips, vae, encoding, data__flip=flip)
    cache.build(vae, one_process())
    drawn = {images.flipped for sample in range(20) for images in cache.choose_images(0, sample)}
    assert drawn == {images.flipped for images in cache.every_image()} == {False, flip}


def test_packed_images_are_of_other_videos_where_there_are_such(
    tmp_path: Path, clips: Path, vae: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    cache = open_cache(tmp_path, clips, vae, "packed")
    of_group = {f"group-{k:05d}": torch.tensor([k % 2, 2]) for k in range(cache.groups)}

    def entry(name: str) -> dict[str, torch.Tensor]:
        picture = of_group[name][:1].expand(2, 2).float()
        return {"videos": of_group[name], "image_mean": picture, "image_logvar": picture}

    monkeypatch.setattr(cache.store, "require", entry)
    for sample in range(20):
        first, second, third = (cache.joint_images(cache.choose_images(k, sample))[0] for k in range(3))
        assert (first == 1).all()
        assert (second == 0).all()
        assert third.shape == (2,), "every group shows this one"


def test_another_vae_or_file_has_another_cache(tmp_path: Path, clips: Path, vae: Any) -> None:
    key = open_cache(tmp_path, clips, vae).store.key
    copy = shutil.copytree(clips, tmp_path / "copy")
    assert open_cache(tmp_path, copy, vae).store.key == key  # the same content at another place
    moved = shutil.copytree(tiny.write_vae(tmp_path / "vae"), tmp_path / "moved")
    assert open_cache(tmp_path, clips, FrequencyCompensatedVAE.from_pretrained(moved)).store.key == key
    other = FrequencyCompensatedVAE.from_pretrained(tiny.write_vae(tmp_path / "other", seed=5))
    keys = {key, open_cache(tmp_path, clips, other).store.key}
    keys.add(open_cache(tmp_path, clips, vae, "packed").store.key)
    shutil.copyfile(copy / "phantom-00001.mkv", copy / "phantom-00000.mkv")
    keys.add(open_cache(tmp_path, copy, vae).store.key)
    with torch.no_grad():
        next(vae.parameters()).view(-1)[0] += 1e-3
    keys.add(open_cache(tmp_path, clips, vae).store.key)
    with torch.no_grad():
        next(vae.parameters()).view(-1)[0] -= 1e-3
    assert len(keys) == 5


def test_joint_images_requested_later_are_encoded_then(tmp_path: Path, clips: Path, vae: Any) -> None:
    without = open_cache(tmp_path, clips, vae, images=0)
    without.build(vae, one_process())
    assert "image_mean" not in without.store.get("clip-0000000")
    cache = open_cache(tmp_path, clips, vae, images=1)
    cache.build(vae, one_process())
    assert cache.joint_images(cache.choose_images(0, 0))[0].shape == (1, 4, 4, 4)
    assert open_cache(tmp_path, clips, vae, images=2).store.key == cache.store.key  # the same pictures


def test_a_damaged_entry_is_built_anew(tmp_path: Path, clips: Path, vae: Any) -> None:
    cache = open_cache(tmp_path, clips, vae)
    cache.build(vae, one_process())
    files = sorted(cache.store.folder.rglob("clip-*.safetensors"))
    before = [file.read_bytes() for file in files]
    times = [file.stat().st_mtime_ns for file in files]
    files[0].write_bytes(before[0][: len(before[0]) // 2])
    files[1].write_bytes(before[1].replace(cache.store.key.encode(), b"0" * 64))
    for file in files[:2]:
        assert cache.store.get(file.stem) is None
    cache.build(vae, one_process())
    assert [file.read_bytes() for file in files] == before
    assert [file.stat().st_mtime_ns for file in files[2:]] == times[2:]


def test_processes_share_the_work_whoever_comes_first(tmp_path: Path, clips: Path, vae: Any) -> None:
    cache = open_cache(tmp_path, clips, vae)
    for rank in (1, 0):
        cache.build(vae, one_process(rank, processes=2))
        done = len(list(cache.store.folder.rglob("clip-*.safetensors")))
        assert done == (len(cache.clips) if rank == 0 else len(cache.clips) // 2)
