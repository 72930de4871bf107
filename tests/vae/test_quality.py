"""The figures of merit against values worked out by hand."""

from __future__ import annotations

import pytest
import torch

from medsora.vae.quality import flicker, mean_colour_psnr, psnr, sharpness, spectrum_error, ssim


def test_psnr_is_per_video_and_by_the_range_of_two() -> None:
    video = torch.zeros(2, 3, 3, 16, 16)
    off = video.clone()
    off[0] += 0.2
    found = psnr(off, video)
    assert found[0].item() == pytest.approx(20)  # 10 log10(2² / 0.2²)
    assert torch.isinf(found[1])


def test_ssim_is_one_for_equal_videos_and_falls_with_noise() -> None:
    video = torch.rand(2, 3, 3, 16, 16) * 2 - 1
    torch.testing.assert_close(ssim(video, video), torch.ones(2))
    assert (ssim(video + 0.3 * torch.randn_like(video), video) < 0.95).all()


def test_flicker_sees_what_comes_and_goes_only() -> None:
    video = torch.rand(1, 4, 3, 8, 8) - 0.5
    torch.testing.assert_close(flicker(video + 0.2, video), torch.zeros(1))
    blinking = video.clone()
    blinking[:, ::2] += 0.2
    torch.testing.assert_close(flicker(blinking, video), torch.full((1,), 0.2))


def test_sharpness_is_below_zero_for_a_blur_and_above_for_noise() -> None:
    video = torch.rand(2, 3, 3, 16, 16) - 0.5
    torch.testing.assert_close(sharpness(video, video), torch.zeros(2))
    torch.testing.assert_close(
        sharpness(10**-0.5 * video + 0.1, video), torch.full((2,), -1.0)
    )  # edges squared
    blurred = torch.nn.functional.avg_pool2d(video.flatten(0, 1), 3, 1, 1).unflatten(0, (2, 3))
    assert (sharpness(blurred, video) < -0.5).all()
    assert (sharpness(video + torch.randn_like(video), video) > 0.3).all()


def test_mean_colour_is_the_score_of_one_colour_per_video() -> None:
    video = torch.zeros(1, 2, 3, 8, 8)
    video[..., :4] = 1.0
    assert mean_colour_psnr(video).item() == pytest.approx(10 * torch.log10(torch.tensor(4 / 0.25)).item())


def test_spectrum_error_is_the_mean_over_radii_in_db() -> None:
    """Twice the contrast is 6.02 dB at every frequency; of a blurred video only fine structure differs."""
    torch.manual_seed(0)
    video = torch.rand(2, 3, 3, 16, 24) - 0.5
    torch.testing.assert_close(spectrum_error(video, video), torch.zeros(2))
    doubled = torch.cat((2 * video[:1], video[1:]))
    torch.testing.assert_close(spectrum_error(doubled, video), torch.tensor([6.0206, 0.0]), atol=1e-3, rtol=0)
    brighter = video + 0.3
    torch.testing.assert_close(spectrum_error(brighter, video), torch.zeros(2), atol=1e-3, rtol=0)


def test_spectrum_error_finds_the_frequency_that_is_missing() -> None:
    place = torch.arange(16)
    coarse, fine = (torch.cos(2 * torch.pi * periods * place / 16) for periods in (1, 6))
    both, smooth = ((coarse + part).expand(1, 2, 3, 16, 16) / 4 for part in (fine, 0 * fine))
    once = spectrum_error(smooth, both).item()
    assert once > 5, "one of eight radii lost nearly all of its power"
    noisy = both + 1e-3 * torch.randn(both.shape)
    assert spectrum_error(smooth, noisy).item() > once, "and here the radii without any are compared, too"
