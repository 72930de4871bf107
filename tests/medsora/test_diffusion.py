"""The diffusion process and its losses against closed forms."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from scipy import integrate, stats
from torch import Tensor

from medsora.diffusion import GaussianDiffusion

SHAPE = (2, 3, 4, 2, 2)  # (B, n, C, h, w)


@pytest.fixture
def diffusion() -> GaussianDiffusion:
    return GaussianDiffusion()


def draw(count: int, dtype: torch.dtype = torch.float64) -> tuple[Tensor, ...]:
    return torch.randn(count, *SHAPE, dtype=dtype).unbind(0)


def hybrid(diffusion: GaussianDiffusion, t: Tensor, **changes: Tensor):
    z_0, noise, eps, variance = draw(4)
    given = {"eps": eps, "variance": variance, "z_0": z_0, "z_t": diffusion.add_noise(z_0, noise, t)}
    return diffusion.hybrid_loss(**{**given, "noise": noise, "t": t} | changes)


# The process


def test_schedule_ends_are_pinned(diffusion: GaussianDiffusion) -> None:
    assert float(diffusion.alpha_bar[0]) == pytest.approx(0.9999)
    assert float(diffusion.alpha_bar[-1]) == pytest.approx(4.0358e-5, rel=1e-4)


def test_noising_equals_the_chain_of_single_steps(diffusion: GaussianDiffusion) -> None:
    """Mean and variance of q(z_t | z_0) follow from t single steps with variance beta."""
    betas = torch.linspace(1e-4, 0.02, 1000, dtype=torch.float64)
    mean, variance = 1.0, 0.0
    for beta in betas[:101].tolist():
        mean, variance = mean * math.sqrt(1 - beta), variance * (1 - beta) + beta
    t = torch.tensor([100])
    one, zero = (
        torch.ones(1, 1, 1, 1, 1, dtype=torch.float64),
        torch.zeros(1, 1, 1, 1, 1, dtype=torch.float64),
    )
    assert diffusion.add_noise(one, zero, t).item() == pytest.approx(mean, rel=1e-12)
    assert diffusion.add_noise(zero, one, t).item() ** 2 == pytest.approx(variance, rel=1e-12)


def test_posterior_equals_bayes_rule(diffusion: GaussianDiffusion) -> None:
    """q(z_{t-1} | z_t, z_0) as the product of q(z_t | z_{t-1}) and q(z_{t-1} | z_0)."""
    t, z_0, z_t = 400, 0.8, -0.3
    before, now = diffusion.alpha_bar[t - 1].item(), diffusion.alpha_bar[t].item()
    beta = 1 - now / before
    precision = (1 - beta) / beta + 1 / (1 - before)
    mean = (math.sqrt(1 - beta) * z_t / beta + math.sqrt(before) * z_0 / (1 - before)) / precision
    as_latent = [torch.full((1, 1, 1, 1, 1), value, dtype=torch.float64) for value in (z_0, z_t)]
    found = diffusion.posterior_mean(*as_latent, torch.tensor([t]))
    assert found.item() == pytest.approx(mean, rel=1e-9)
    lowest = diffusion.log_variance(torch.full_like(found, -1), torch.tensor([t]))
    assert lowest.item() == pytest.approx(-math.log(precision), rel=1e-9)
    highest = diffusion.log_variance(torch.ones_like(found), torch.tensor([t]))
    assert highest.item() == pytest.approx(math.log(beta), rel=1e-9)


def test_the_lowest_variance_of_the_last_step_is_that_of_the_step_before(
    diffusion: GaussianDiffusion,
) -> None:
    """The posterior's own is 0 at t = 0; its logarithm is clipped as Nichol & Dhariwal do."""
    low = torch.full((2, 1, 1, 1, 1), -1.0)
    last, before = diffusion.log_variance(low, torch.tensor([0, 1])).flatten().tolist()
    assert last == before


def test_one_timestep_per_latent_frame(diffusion: GaussianDiffusion) -> None:
    z_0, noise = draw(2)
    t = torch.tensor([[0, 10, 500], [999, 3, 3]])
    together = diffusion.add_noise(z_0, noise, t)
    for frame in range(3):
        alone = diffusion.add_noise(z_0[:, frame : frame + 1], noise[:, frame : frame + 1], t[:, frame])
        assert torch.equal(together[:, frame : frame + 1], alone)


def test_timesteps_of_another_shape_are_refused(diffusion: GaussianDiffusion) -> None:
    z_0, noise = draw(2)
    with pytest.raises(ValueError, match="one per sample or one per latent frame"):
        diffusion.add_noise(z_0, noise, torch.zeros(4, dtype=torch.long))


# The loss


@pytest.mark.parametrize("step", [1, 2, 300, 999])
def test_variational_term_is_the_divergence_in_bits(diffusion: GaussianDiffusion, step: int) -> None:
    z_0, noise, eps, variance = draw(4)
    t = torch.tensor([step, step])
    z_t = diffusion.add_noise(z_0, noise, t)
    loss = diffusion.hybrid_loss(eps, variance, z_0, z_t, noise, t)
    alpha_bar = diffusion.alpha_bar[step]
    predicted = (z_t - (1 - alpha_bar).sqrt() * eps) / alpha_bar.sqrt()
    truth, model = (
        torch.distributions.Normal(
            diffusion.posterior_mean(start, z_t, t), diffusion.log_variance(channels, t).mul(0.5).exp()
        )
        for start, channels in ((z_0, torch.full_like(variance, -1)), (predicted, variance))
    )
    bits = torch.distributions.kl_divergence(truth, model).flatten(1).mean(1) / math.log(2)
    torch.testing.assert_close(loss.vb, bits)
    torch.testing.assert_close(loss.mse, (eps - noise).square().flatten(1).mean(1))
    torch.testing.assert_close(loss.total, loss.mse + loss.vb)


def test_variational_term_at_the_last_step_is_a_likelihood_of_bins(diffusion: GaussianDiffusion) -> None:
    t = torch.zeros(2, dtype=torch.long)
    z_0, noise, eps, variance = draw(4)
    z_t = diffusion.add_noise(z_0, noise, t)
    found = diffusion.hybrid_loss(eps, variance, z_0, z_t, noise, t).vb
    alpha_bar = diffusion.alpha_bar[0]
    mean = ((z_t - (1 - alpha_bar).sqrt() * eps) / alpha_bar.sqrt()).numpy()  # at t = 0 the mean is z_0's
    deviation = diffusion.log_variance(variance, t).mul(0.5).exp().numpy()
    normal = stats.norm(mean, deviation)
    probability = normal.cdf(z_0 + 1 / 255) - normal.cdf(z_0 - 1 / 255)
    bits = -np.log2(probability).reshape(2, -1).mean(1)
    np.testing.assert_allclose(found, bits, rtol=1e-6)
    whole = integrate.quad(lambda x: stats.norm.pdf(x, 0, 0.01), -1 / 255, 1 / 255)[0]
    assert 0.2 < whole < 0.4  # the bins are neither all nor nothing of a last step


def test_far_misses_keep_finite_losses_and_gradients(diffusion: GaussianDiffusion) -> None:
    variance = torch.randn(*SHAPE, requires_grad=True)
    far = torch.full(SHAPE, 300.0)
    loss = hybrid(diffusion, torch.tensor([0, 1]), eps=far, variance=variance)
    loss.total.sum().backward()
    assert torch.isfinite(loss.total).all()
    assert torch.isfinite(variance.grad).all()
    assert variance.grad.abs().sum() > 0


def test_variational_term_trains_the_variance_alone(diffusion: GaussianDiffusion) -> None:
    eps, variance = (x.requires_grad_() for x in draw(2))
    loss = hybrid(diffusion, torch.tensor([0, 700]), eps=eps, variance=variance)
    by_vb = torch.autograd.grad(loss.vb.sum(), (eps, variance), retain_graph=True, allow_unused=True)
    assert by_vb[0] is None
    assert by_vb[1].abs().min() > 0
    by_mse = torch.autograd.grad(loss.mse.sum(), (eps, variance), allow_unused=True)
    assert by_mse[0].abs().min() > 0
    assert by_mse[1] is None


def test_the_right_variance_is_learned(diffusion: GaussianDiffusion) -> None:
    """With a perfect mean the best variance is the posterior's own: channels at -1, and a loss of 0."""
    z_0, noise = draw(2)
    t = torch.tensor([500, 20])
    z_t = diffusion.add_noise(z_0, noise, t)
    best = diffusion.hybrid_loss(noise, torch.full_like(noise, -1), z_0, z_t, noise, t)
    worse = diffusion.hybrid_loss(noise, torch.ones_like(noise), z_0, z_t, noise, t)
    assert torch.allclose(best.total, torch.zeros(2, dtype=torch.float64), atol=1e-12)
    assert (worse.vb > best.vb).all()


def test_losses_are_per_sample_and_latents_can_be_weighted(diffusion: GaussianDiffusion) -> None:
    z_0, noise, eps, variance = draw(4)
    t = torch.tensor([30, 0])
    z_t = diffusion.add_noise(z_0, noise, t)
    both = diffusion.hybrid_loss(eps, variance, z_0, z_t, noise, t)
    alone = diffusion.hybrid_loss(*(x[1:] for x in (eps, variance, z_0, z_t, noise, t)))
    assert torch.equal(both.total[1:], alone.total)
    clip = diffusion.hybrid_loss(eps, variance, z_0, z_t, noise, t, weights=torch.tensor([1, 1, 0]))
    first_two = diffusion.hybrid_loss(*(x[:, :2] for x in (eps, variance, z_0, z_t, noise)), t)
    torch.testing.assert_close(clip, first_two)


def test_half_precision_outputs_are_judged_in_float32(diffusion: GaussianDiffusion) -> None:
    z_0, noise, eps, variance = draw(4, torch.bfloat16)
    t = torch.tensor([30, 0])
    loss = diffusion.hybrid_loss(eps, variance, z_0, diffusion.add_noise(z_0, noise, t), noise, t)
    assert loss.total.dtype == torch.float32


def test_error_weights_turn_eps_error_into_that_of_velocity_and_data() -> None:
    diffusion = GaussianDiffusion()
    t = torch.tensor([0, 120, 400])
    z_0, noise, predicted = (torch.randn(3, 1, 2, 4, 4, dtype=torch.float64) for _ in range(3))
    z_t = diffusion.add_noise(z_0, noise, t)
    signal = diffusion.alpha_bar[t].sqrt().view(3, 1, 1, 1, 1)
    spread = (1 - diffusion.alpha_bar[t]).sqrt().view(3, 1, 1, 1, 1)
    implied = (z_t - spread * predicted) / signal
    velocity, implied_velocity = signal * noise - spread * z_0, signal * predicted - spread * implied

    def error(found: torch.Tensor, wanted: torch.Tensor) -> torch.Tensor:
        return (found - wanted).square().flatten(1).mean(1)

    def weighted(target: str) -> torch.Tensor:
        return diffusion.error_weight(t, target) * error(predicted, noise)

    torch.testing.assert_close(weighted("noise"), error(predicted, noise), rtol=0, atol=0)
    torch.testing.assert_close(weighted("velocity"), error(implied_velocity, velocity), rtol=1e-5, atol=0)
    torch.testing.assert_close(weighted("data"), error(implied, z_0), rtol=1e-5, atol=0)
