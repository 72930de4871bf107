"""medsora.baselines.endora.image_prior, medsora.training.stage2.loss: Endora's alignment with DINO."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import nn
from torch.nn import functional

from medsora.baselines.endora.image_prior import ImagePrior
from medsora.config.schema import Config
from medsora.flow_prior import DinoEncoder, image_alignment_loss
from medsora.flow_prior.choices import IMAGE_SOURCES
from medsora.training.cache.prior import prior_cache_bytes
from medsora.training.dry_run.report import dry_run_denoiser
from medsora.training.fill_caches import fill_caches
from medsora.training.schedule import SampleKey
from medsora.training.stage2.build import build_denoiser_stage, build_prior
from tests.support import tiny_training as tiny

SIZES = {"latent_frames": 3, "grid": (2, 2), "width": 8}


@pytest.fixture(scope="module")
def encoder() -> DinoEncoder:
    return DinoEncoder("vit_small_patch8_224.dino", "random")


@pytest.mark.parametrize(
    ("features", "pairs"),
    [
        (14, {2: 2, 5: 5, 8: 8, 11: 11}),
        (12, {2: 2, 5: 5, 8: 8, 11: 11}),
        (6, {0: 2, 2: 5, 3: 8, 5: 11}),
        (3, {0: 5, 1: 8, 2: 11}),
    ],
)
def test_the_published_layers_are_paired(encoder: DinoEncoder, features: int, pairs: dict[int, int]) -> None:
    prior = ImagePrior(encoder, features)
    assert prior.layer_of == pairs
    of_layers = [torch.full((), layer) for layer in prior.distinct_layers]
    found = prior.pair_with_blocks(of_layers)
    assert {n: int(t) for n, t in enumerate(found) if t is not None} == pairs
    assert len(found) == features


@torch.no_grad()
def test_targets_are_normed_tokens_of_unnormalised_frames(encoder: DinoEncoder) -> None:
    video = torch.rand(2, 4, 3, 32, 32) * 2 - 1
    prior, network = ImagePrior(encoder, 14), encoder.network
    targets = prior.distinct_targets(video, **SIZES)
    x = network._pos_embed(network.patch_embed(video[1, :3]))
    for number, block in enumerate(network.blocks):
        x = block(x)
        if number in (2, 5, 8, 11):
            plain = network.norm(x)[:, 1:].mT.unflatten(2, (4, 4))
            torch.testing.assert_close(targets[(2, 5, 8, 11).index(number)][1], plain)
    assert all(target.shape == (2, *prior.target_shape((3, 2, 2), 8)) for target in targets)
    averaged = prior.distinct_targets(video, **SIZES | {"latent_frames": 1})
    torch.testing.assert_close(averaged[0][:, 0], targets[0].mean(1))


@torch.no_grad()
@pytest.mark.parametrize("source", IMAGE_SOURCES)
def test_frames_that_the_patch_does_not_divide_are_resized_up(source: str) -> None:
    prior = ImagePrior(DinoEncoder("vit_tiny_patch16_224", "random"), 4, source)
    frames = torch.rand(3, 3, 24, 40) * 2 - 1
    larger = functional.interpolate(frames, (32, 48), mode="bilinear")
    found, expected = (prior.picture_targets(pictures, 3, (3, 5)) for pictures in (frames, larger))
    for ours, theirs in zip(found, expected, strict=True):
        assert ours.shape == (3, prior.width, 6, 10)
        assert torch.equal(ours, theirs)


@torch.no_grad()
def test_attention_maps_are_the_class_token_s(encoder: DinoEncoder) -> None:
    video = torch.rand(1, 4, 3, 32, 32) * 2 - 1
    prior, network = ImagePrior(encoder, 14, "attention"), encoder.network
    targets = prior.distinct_targets(video, **SIZES)
    x = network._pos_embed(network.patch_embed(video[0, :3]))
    for block in network.blocks[:2]:
        x = block(x)
    attention = network.blocks[2].attn
    q, k, _ = attention.qkv(network.blocks[2].norm1(x)).chunk(3, dim=-1)
    for head in range(6):
        of_head = slice(64 * head, 64 * (head + 1))
        weights = (q[:, :, of_head] @ k[:, :, of_head].mT / 8).softmax(-1)
        torch.testing.assert_close(targets[0][0, :, head], weights[:, 0, 1:].unflatten(1, (4, 4)))
    assert prior.width == 6


@pytest.mark.parametrize("joint", [0, 2])
def test_the_loss_is_pearson_s_over_the_tokens_of_every_frame_and_image(joint: int) -> None:
    features = [torch.randn(2, 3 + joint, 4, 5, dtype=torch.float64, requires_grad=True) for _ in range(3)]
    targets = [None, *(torch.randn(1, 3 + joint, 7, 4, 4, dtype=torch.float64) for _ in range(2))]
    adapter = nn.Conv2d(7, 5, 2, 2, bias=False).double()
    of_clip, of_images = ([f[:, part] for f in features] for part in (slice(3), slice(3, None)))
    one_of_two = torch.tensor([False, True])
    aligned = image_alignment_loss(of_clip, targets, adapter, one_of_two, of_images if joint else None)
    expected = []
    for feature, target in list(zip(features, targets, strict=True))[1:]:
        for frame in range(3 + joint):
            teacher = adapter(target[0, frame]).mean(0).flatten()
            r = torch.corrcoef(torch.stack((feature[1, frame].mean(1), teacher)))[0, 1]
            expected.append(1 - r)
    mean = torch.stack(expected).mean()
    torch.testing.assert_close(aligned.per_sample, torch.stack((torch.zeros_like(mean), mean)))
    torch.testing.assert_close(aligned.loss, mean / 2)
    aligned.loss.backward()
    assert adapter.weight.grad.any()
    assert features[0].grad is None
    assert not features[1].grad[0].any()
    assert features[1].grad[1].any()
    nothing = image_alignment_loss(features, None, adapter, torch.tensor([False, False]))
    assert nothing.loss == 0
    assert nothing.per_block.shape == (1, 0)


# In training


MEDSORA = {"denoiser__preset": "tiny", "denoiser__overrides": dict(tiny.DENOISER)}
PACKED = {"images__encoding": "packed", "images__count": 8}


def configure(work: Path, clips: Path, vae: Path, **changes) -> Config:
    image = {"alignment__kind": "image", "alignment__weight": 0.5}
    model = {"denoiser__preset": "endora-tiny", "denoiser__overrides": {"width": 32, "depth": 4, "heads": 2}}
    dino = {"dino__model": "vit_tiny_patch16_224"}
    return tiny.tiny_config(work, clips, **{"vae__path": str(vae)} | image | model | dino | changes)


@pytest.mark.parametrize(
    ("model", "cache", "given", "images"),
    [
        ({}, "off", 0.0, {}),
        ({}, "disk", 0.5, PACKED),
        (MEDSORA, "off", 0.5, PACKED),
        (MEDSORA, "disk", 0.0, {}),
    ],
    ids=["endora", "endora-cached-first-frames", "medsora-first-frames", "medsora-cached"],
)
def test_the_adapter_is_trained_saved_and_resumed(
    clips: Path,
    vae_folder: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    model: dict,
    cache: str,
    given: float,
    images: dict,
) -> None:
    monkeypatch.chdir(tmp_path)
    changes = {"cache__latents": cache, "cache__prior": cache, "train_dit__first_frame_prob": given}
    changes |= {"data__frames": 9} | model | images
    straight = tiny.train("dit", configure(Path("straight"), clips, vae_folder, **changes))
    for steps in (2, 4):
        half = configure(Path("halves"), clips, vae_folder, train_dit__max_steps=steps, **changes)
        halves = tiny.train("dit", half)
    tiny.assert_same_run(straight, halves, 4)
    before, after = (tiny.saved_tensors(straight, step) for step in (2, 4))
    names = [name for name in after if name.endswith("adapter.weight")]
    assert len(names) >= 2
    assert not any(torch.equal(before[name], after[name]) for name in names)
    logged = [line["loss/alignment"] for line in tiny.log_lines(straight) if "loss/alignment" in line]
    assert all(0 <= value <= 2 for value in logged)
    assert any(logged)


@pytest.mark.parametrize("model", [{}, MEDSORA], ids=["endora", "medsora"])
@pytest.mark.parametrize("cache", ["off", "disk"])
@pytest.mark.parametrize("images", [{}, PACKED], ids=["single", "packed"])
def test_joint_images_are_compared_with_what_dino_sees_in_them(
    clips: Path, vae_folder: Path, tmp_path: Path, model: dict, cache: str, images: dict
) -> None:
    caches = {"cache__latents": cache, "cache__prior": cache}
    stage = build_denoiser_stage(configure(tmp_path, clips, vae_folder, **caches, **model, **images))
    keys = [SampleKey(0, 0, 0), SampleKey(1, 0, 1)]

    def targets_and_pictures() -> tuple[list[torch.Tensor], torch.Tensor]:
        batch = stage.samples.collate([stage.samples[key] for key in keys])
        assert batch["needed"].all()
        targets = [target for target in stage.inputs.alignment_targets(batch) if target is not None]
        if cache == "off":
            return targets, batch["images"]
        latents = stage.samples.latents
        chosen = [latents.choose_images(latents.clips.windows[key.index][0], key.number) for key in keys]
        return targets, torch.stack([torch.cat(list(map(latents.pictures, joint))) for joint in chosen])

    computed, pictures = targets_and_pictures()
    prior = stage.inputs.prior
    for row in range(2):
        expected = prior.picture_targets(pictures[row], 2, (2, 2))
        for target, of_images in zip(computed, expected, strict=True):
            assert target.shape[1] == 4 + 2
            torch.testing.assert_close(target[row, 4:], of_images, rtol=1e-3, atol=2e-3)  # kept as fp16
    again, _ = targets_and_pictures()
    assert all(torch.equal(*both) for both in zip(computed, again, strict=True))
    if cache == "disk":
        item = stage.samples[keys[0]]
        assert all(isinstance(found, list) for _, found in item["image_prior"])


def test_the_flow_prior_has_no_target_for_joint_images(clips: Path, vae_folder: Path, tmp_path: Path) -> None:
    flow = {"alignment__kind": "flow", "cache__latents": "disk", "alignment__margin": 0.0}
    stage = build_denoiser_stage(configure(tmp_path, clips, vae_folder, **flow))
    item = stage.samples[SampleKey(0, 0, 0)]
    assert item["needed"]
    assert "image_prior" not in item
    targets = stage.inputs.alignment_targets(stage.samples.collate([item]))
    assert {target.shape[1] for target in targets} == {4}


@pytest.mark.parametrize("images", [{}, PACKED], ids=["single", "packed"])
def test_a_dry_run_counts_it_and_the_cache_holds_it(
    clips: Path,
    vae_folder: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture,
    images: dict,
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("medsora.training.dry_run.report.USUAL_SIDES_PX", ())
    config = configure(Path(), clips, vae_folder, cache__latents="disk", cache__prior="disk", **images)
    dry_run_denoiser(config)
    fill_caches(config)
    printed = capsys.readouterr().out
    assert "ready" in printed.splitlines()
    files = list(Path("cache").glob("prior-*/*/*.safetensors"))
    prior, stage = build_prior(config, 2), build_denoiser_stage(config)
    size = sum(file.stat().st_size for file in files)
    clip_count = len(stage.samples.clips)
    most = prior_cache_bytes(config, clip_count, prior, (4, 2, 2), 32, stage.vae)
    assert size == pytest.approx(most, rel=0.1)
    assert len(files) == 2 * clip_count + 2 * (config.cache.image_groups if images else clip_count)
    monkeypatch.setattr(ImagePrior, "picture_targets", None)  # everything is there
    tiny.train("dit", config)


def test_an_unknown_source_is_refused(encoder: DinoEncoder) -> None:
    with pytest.raises(ValueError, match="tokens, attention"):
        ImagePrior(encoder, 4, "maps")
