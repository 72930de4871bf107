"""medsora.vae.losses, medsora.vae.perceptual: the losses of stage 1: equal to their references, weighted
once, and honest about missing weights.
"""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
import torchvision
from focal_frequency_loss import FocalFrequencyLoss

from medsora.vae import VaeLoss, focal_frequency_loss
from medsora.vae.losses import TokenizerLoss, coarse_loss, kl_divergence, motion_loss, sharpness_loss
from medsora.vae.perceptual import PerceptualLoss
from medsora.vae.tokenizer import TokenizerOutput


@pytest.mark.parametrize("alpha", [1.0, 2.0])
@pytest.mark.parametrize("shape", [(2, 3, 16, 16), (4, 3, 12, 20)])
def test_focal_frequency_loss_equals_the_package(shape: tuple[int, ...], alpha: float) -> None:
    ours, theirs = (torch.rand(shape, generator=torch.Generator().manual_seed(0)) for _ in range(2))
    target = torch.rand(shape)
    ours.requires_grad_(True), theirs.requires_grad_(True)
    mine = focal_frequency_loss(ours, target, alpha)
    reference = FocalFrequencyLoss(alpha=alpha)(theirs, target)
    assert mine.item() == reference.item()
    mine.backward(), reference.backward()
    torch.testing.assert_close(ours.grad, theirs.grad)


def test_focal_frequency_loss_of_a_video_is_that_of_its_frames() -> None:
    pred, target = torch.rand(2, 5, 3, 16, 16), torch.rand(2, 5, 3, 16, 16)
    whole = focal_frequency_loss(pred, target)
    torch.testing.assert_close(whole, focal_frequency_loss(pred.flatten(0, 1), target.flatten(0, 1)))
    torch.testing.assert_close(whole, FocalFrequencyLoss()(pred.flatten(0, 1), target.flatten(0, 1)))
    assert focal_frequency_loss(pred.bfloat16(), target).dtype == torch.float32


def test_focal_frequency_loss_of_equal_images_is_zero_with_zero_gradient() -> None:
    image = torch.rand(1, 3, 8, 8, requires_grad=True)
    loss = focal_frequency_loss(image, image.detach())
    loss.backward()
    assert loss == 0
    assert torch.equal(image.grad, torch.zeros_like(image))


def test_kl_divergence_is_that_of_torch() -> None:
    mean, logvar = torch.randn(2, 4), torch.randn(2, 4)
    normal = torch.distributions.Normal
    reference = torch.distributions.kl_divergence(
        normal(mean, (0.5 * logvar).exp()), normal(torch.zeros(()), torch.ones(()))
    )
    torch.testing.assert_close(kl_divergence(mean, logvar), reference.mean())


def test_each_part_is_weighted_exactly_once(monkeypatch) -> None:
    monkeypatch.setattr(
        "medsora.vae.perceptual.PerceptualLoss", lambda net, trunk: PerceptualLoss(net, random_trunk=True)
    )
    pred, target = torch.rand(1, 2, 3, 64, 64) - 0.5, torch.rand(1, 2, 3, 64, 64) * 2 - 1
    mean, logvar = torch.randn(1, 1, 16, 8, 8), torch.randn(1, 1, 16, 8, 8)
    loss = VaeLoss(
        l1=1.0, lpips=0.1, ffl=0.1, kl=1e-3, coarse=0.25, sharpness=0.5, motion=0.3, lpips_net="alex"
    )
    found = loss(pred, target, mean, logvar, coarse=torch.rand(1, 2, 3, 32, 32))
    torch.testing.assert_close(found.l1, (pred - target).abs().mean())
    torch.testing.assert_close(found.lpips, loss.perceptual(pred, target))
    torch.testing.assert_close(found.ffl, focal_frequency_loss(pred, target))
    torch.testing.assert_close(found.kl, kl_divergence(mean, logvar))
    expected = found.l1 + 0.1 * found.lpips + 0.1 * found.ffl + 1e-3 * found.kl + 0.25 * found.coarse
    expected += 0.5 * found.sharpness + 0.3 * found.motion
    torch.testing.assert_close(found.total, expected)
    assert all(value > 0 for value in found._asdict().values())


def test_a_part_of_weight_zero_is_not_computed() -> None:
    pred, target, latent = (
        torch.rand(1, 1, 3, 16, 16),
        torch.rand(1, 1, 3, 16, 16),
        torch.randn(1, 1, 16, 2, 2),
    )
    found = VaeLoss(l1=1.0, lpips=0, ffl=0, kl=0)(pred, target, latent, latent)
    assert found.total == found.l1
    assert found.lpips == found.ffl == found.kl == found.coarse == found.sharpness == found.motion == 0


def test_a_tokenizer_s_parts_are_weighted_once_and_pull_each_its_own_side() -> None:
    pred, target = torch.rand(2, 3, 16, 16), torch.rand(2, 3, 16, 16)
    latents, rows = torch.randn(8, 4, requires_grad=True), torch.randn(8, 4, requires_grad=True)
    loss = TokenizerLoss(l1=0.5, lpips=0, ffl=0, l2=2.0, commitment=0.25)
    found = loss(TokenizerOutput(pred, latents, rows, torch.arange(8)), target)
    distance = (latents - rows).square().mean()
    torch.testing.assert_close(found.commitment, distance)
    torch.testing.assert_close(found.codebook, distance)
    expected = 0.5 * (pred - target).abs().mean() + 2 * (pred - target).square().mean() + 1.25 * distance
    torch.testing.assert_close(found.total, expected)
    found.total.backward()
    torch.testing.assert_close(latents.grad, -0.25 * rows.grad)
    without = loss(TokenizerOutput(pred, latents, latents, None), target)
    assert without.commitment == without.codebook == 0


def test_coarse_loss_compares_with_the_video_at_half_size() -> None:
    video = torch.rand(2, 3, 3, 16, 32)
    half = torch.nn.functional.interpolate(video.flatten(0, 1), scale_factor=0.5, mode="area")
    assert coarse_loss(half.unflatten(0, (2, 3)), video) < 1e-6
    torch.testing.assert_close(coarse_loss(half.unflatten(0, (2, 3)) + 0.5, video), torch.tensor(0.5))


def test_sharpness_loss_counts_decades_in_either_direction_and_ignores_brightness() -> None:
    video = torch.rand(2, 3, 3, 16, 16)
    assert sharpness_loss(video + 0.25, video) == sharpness_loss(10**0.09 * video, video) == 0
    for factor in (10**0.5, 10**-0.5):
        torch.testing.assert_close(sharpness_loss(factor * video, video), torch.tensor(0.8))
    with torch.autocast("cpu", torch.bfloat16):
        assert sharpness_loss(10**0.09 * video, video) == 0
    flat = torch.zeros(1, 1, 3, 16, 16, requires_grad=True)
    sharpness_loss(flat, video[:1, :1]).backward()
    assert flat.grad.isfinite().all()


class TestPerceptualLoss:
    """LPIPS with a trunk that is at hand, or with a sentence."""

    def test_random_trunk_separates_images_and_learns_nothing(self) -> None:
        loss = PerceptualLoss("alex", random_trunk=True).train()
        video = torch.rand(1, 2, 3, 64, 64) * 2 - 1
        other = torch.rand_like(video, requires_grad=True)
        assert loss(video, video) == 0
        loss(other, video).backward()
        assert other.grad.abs().sum() > 0
        assert not any(parameter.requires_grad for parameter in loss.parameters())
        assert not any(module.training for module in loss.modules())

    def test_trunk_comes_from_a_local_file(self, tmp_path: Path) -> None:
        alexnet = torchvision.models.alexnet(weights=None)
        torch.save(alexnet.state_dict(), tmp_path / "alexnet.pth")
        loss = PerceptualLoss("alex", trunk=tmp_path / "alexnet.pth")
        of_loss = loss.model.net.state_dict()
        assert torch.equal(of_loss["slice3.6.weight"], alexnet.features[6].weight)
        assert torch.equal(of_loss["slice1.0.bias"], alexnet.features[0].bias)

    def test_trunk_that_does_not_fit_is_refused(self, tmp_path: Path) -> None:
        torch.save({"features.0.weight": torch.zeros(1)}, tmp_path / "other.pth")
        with pytest.raises(ValueError, match=r"other\.pth does not hold torchvision's weights"):
            PerceptualLoss("alex", trunk=tmp_path / "other.pth")
        (tmp_path / "cut.pth").write_bytes(b"PK\x03\x04 cut")
        with pytest.raises(ValueError, match=r"cut\.pth is not a complete"):
            PerceptualLoss("alex", trunk=tmp_path / "cut.pth")
        with pytest.raises(FileNotFoundError, match="lpips_trunk"):
            PerceptualLoss("alex", trunk=tmp_path / "none.pth")
        with pytest.raises(ValueError, match="must be one of vgg, alex"):
            PerceptualLoss("squeeze")

    def test_no_network_names_both_ways(self, monkeypatch, tmp_path: Path) -> None:
        def unreachable(*args: object, **kwargs: object) -> None:
            raise OSError("no network in tests")

        monkeypatch.setenv("TORCH_HOME", str(tmp_path))
        monkeypatch.setattr("urllib.request.urlopen", unreachable)
        monkeypatch.setattr("torch.hub.urlopen", unreachable)
        with pytest.raises(OSError, match=r"cannot be downloaded from .*lpips_trunk to its path"):
            PerceptualLoss("alex")


def test_motion_loss_counts_decades_per_block_and_ignores_what_stands_still() -> None:
    video = torch.rand(2, 3, 3, 32, 48)
    still = torch.rand(2, 1, 3, 32, 48)
    torch.testing.assert_close(motion_loss(video + still, video), torch.tensor(0.0), atol=1e-6, rtol=0)
    for factor in (10**0.5, 10**-0.5):  # amplitude; the change is its square
        torch.testing.assert_close(motion_loss(factor * video, video), torch.tensor(1.0))
    half = video.clone()
    half[..., :16, :] *= 10**0.5  # three of six blocks
    torch.testing.assert_close(motion_loss(half, video), torch.tensor(0.5))
    with torch.autocast("cpu", torch.bfloat16):
        assert motion_loss(video, video) == 0


def test_motion_loss_has_finite_gradients_where_nothing_moves() -> None:
    still = torch.zeros(1, 3, 3, 16, 16, requires_grad=True)
    motion_loss(still, torch.rand(1, 3, 3, 16, 16)).backward()
    assert still.grad.isfinite().all()
    assert motion_loss(torch.rand(2, 1, 3, 8, 8), torch.rand(2, 1, 3, 8, 8)) == 0


def test_motion_loss_is_the_largest_for_a_clip_that_is_blurred_over_its_frames() -> None:
    video = torch.rand(1, 8, 3, 32, 32)
    blurred = (video + video.roll(1, 1)) / 2
    shifted = video.roll(1, 1)
    assert motion_loss(shifted, video) < 0.1 < 0.25 < motion_loss(blurred, video)
