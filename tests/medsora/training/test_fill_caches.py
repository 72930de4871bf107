"""Filling the caches beforehand: complete, sharded, its size reported first."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import pytest
import torch

from medsora.errors import BadInput
from medsora.training import fill_caches as cache
from medsora.training.cache import prior as prior_cache
from medsora.training.cache.prior import PriorCache
from medsora.training.fill_caches import fill_caches
from medsora.training.stage2.build import build_prior
from tests.medsora.training.cache.test_latents import one_process
from tests.support import tiny_training as tiny
from tests.support.clip_dataset import clip_dataset


def entries(folder: Path, kind: str) -> dict[str, int]:
    return {path.name: path.stat().st_size for path in folder.glob(f"{kind}-*/*/*.safetensors")}


def test_it_fills_what_the_loop_then_reads(
    tmp_path: Path, clips: Path, vae_folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    config = tiny.tiny_config(
        tmp_path, clips, vae__path=str(vae_folder), cache__latents="disk", cache__prior="disk"
    )
    fill_caches(config)
    latents, priors = (entries(Path(config.cache.dir), kind) for kind in ("latents", "prior"))
    assert len(priors) == 2 * len(latents) > 0, "plain and flipped"
    output = capsys.readouterr().out
    promised = [float(part.split(" MiB")[0].split()[-1]) for part in output.split(";")[0].split(", ")]
    for size, kept in zip(promised, (latents, priors), strict=True):
        headers = len(kept) * 2000
        assert abs(sum(kept.values()) - size * 2**20) < headers + 0.06 * 2**20

    before = {path: path.stat().st_mtime_ns for path in Path(config.cache.dir).rglob("*.safetensors")}
    tiny.train("dit", config)
    after = {path: path.stat().st_mtime_ns for path in Path(config.cache.dir).rglob("*.safetensors")}
    assert after == before, "the run found everything in place"


def test_a_config_without_caches_and_a_full_disk_are_one_sentence(
    tmp_path: Path, clips: Path, vae_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = tiny.tiny_config(tmp_path, clips, vae__path=str(vae_folder))
    with pytest.raises(BadInput, match=r"cache\.latents=disk"):
        fill_caches(config)
    full = type("Usage", (), {"free": 0})()
    monkeypatch.setattr(cache.shutil, "disk_usage", lambda folder: full)
    kept = dataclasses.replace(config, cache=dataclasses.replace(config.cache, latents="disk"))
    other = Path(kept.cache.dir) / "latents-of-another-vae" / "large.safetensors"
    other.parent.mkdir(parents=True)
    other.write_bytes(bytes(10_000_000))
    with pytest.raises(BadInput, match="0 MiB left"):
        fill_caches(kept)
    assert torch.is_grad_enabled()


def test_prior_features_of_other_weights_sizes_or_code_lie_elsewhere(
    tmp_path: Path, clips: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = tiny.tiny_config(tmp_path, clips, cache__latents="disk", cache__prior="disk")
    prior = build_prior(config, 4)

    def key(size: int = 32, grid: tuple[int, int, int] = (4, 2, 2)) -> str:
        dataset = clip_dataset(clips, frames=16, interval=1, size=size, holdout=0.2)
        return PriorCache(config, dataset, prior, grid, 32).store.key

    first = key()
    assert key() == first
    keys = {first, key(size=48), key(grid=(4, 4, 4))}
    config.vae.kind = "per-frame"
    keys.add(key(grid=(16, 2, 2)))
    config.vae.kind = "causal"
    with torch.no_grad():
        next(prior.parameters()).view(-1)[0] += 1e-3
    keys.add(key())
    monkeypatch.setattr(prior_cache, "CODE_VERSION", prior_cache.CODE_VERSION + 1)
    keys.add(key())
    assert config.flow.estimator == "dis"
    monkeypatch.setattr(prior_cache.cv2, "__version__", "another")
    keys.add(key())
    assert len(keys) == 7


def test_processes_share_the_prior_features_and_none_is_computed_twice(tmp_path: Path, clips: Path) -> None:
    config = tiny.tiny_config(tmp_path, clips, cache__latents="disk", cache__prior="disk")
    prior = build_prior(config, 4)
    dataset = clip_dataset(clips, frames=16, interval=1, size=32, holdout=0.2)
    written: list[set[str]] = []
    for rank in range(2):
        kept = PriorCache(config, dataset, prior, (4, 2, 2), 32)
        before = set(entries(Path(config.cache.dir), "prior"))
        kept.build(prior, dataset, one_process(rank, 2), None)
        written.append(set(entries(Path(config.cache.dir), "prior")) - before)
    assert len(written[0]) + len(written[1]) == 2 * len(dataset), "plain and flipped"
    assert abs(len(written[0]) - len(written[1])) <= 1
