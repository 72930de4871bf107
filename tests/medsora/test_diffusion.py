"""The diffusion process against closed forms, the samplers against a Gaussian whose denoiser is known."""

from __future__ import annotations

import math
from itertools import pairwise

import numpy as np
import pytest
import torch
from diffusers import DDIMScheduler
from scipy import integrate, stats
from torch import Tensor

from medsora.diffusion import GaussianDiffusion
from medsora.errors import BadInput
from medsora.sampler import (
    ListedDDIMScheduler,
    ddim_scheduler,
    dpmpp_scheduler,
    make_scheduler,
    sample,
    trailing_timesteps,
)

SHAPE = (2, 3, 4, 2, 2)  # (B, n, C, h, w)
MU, S = 0.7, 0.3


@pytest.fixture
def diffusion() -> GaussianDiffusion:
    return GaussianDiffusion()


def draw(count: int, dtype: torch.dtype = torch.float64) -> tuple[Tensor, ...]:
    return torch.randn(count, *SHAPE, dtype=dtype).unbind(0)


def exact_eps(z: Tensor, t: Tensor) -> Tensor:
    """What the best possible denoiser answers if all data are N(MU, S²)."""
    alpha_bar = GaussianDiffusion().alpha_bar[t].reshape(-1, *[1] * (z.ndim - 1)).to(z)
    variance = alpha_bar * S**2 + 1 - alpha_bar
    return (1 - alpha_bar).sqrt() * (z - alpha_bar.sqrt() * MU) / variance


def flow_of_the_ode(noise: Tensor) -> Tensor:
    """Where the probability flow carries noise at t = 999: quantile to quantile."""
    alpha_bar = GaussianDiffusion().alpha_bar[-1].to(noise)
    return MU + S * (noise - alpha_bar.sqrt() * MU) / (alpha_bar * S**2 + 1 - alpha_bar).sqrt()


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


# The samplers


@pytest.mark.parametrize(
    ("steps", "first", "last"),
    [(250, [999, 995, 991], [7, 3]), (50, [999, 979, 959], [39, 19]), (7, [999, 856, 713], [285, 142])],
)
def test_timesteps_are_pinned(steps: int, first: list[int], last: list[int]) -> None:
    for scheduler in (ddim_scheduler(steps), dpmpp_scheduler(steps)):
        timesteps = scheduler.timesteps.tolist()
        assert len(timesteps) == steps
        assert timesteps[:3] == first
        assert timesteps[-2:] == last


@pytest.mark.parametrize("steps", [1, 3, 7, 30, 70, 300, 333, 999, 1000])
def test_timesteps_fall_from_the_top_for_any_count(steps: int) -> None:
    timesteps = trailing_timesteps(steps)
    assert len(timesteps) == steps
    assert timesteps[0] == 999
    assert timesteps[-1] >= 0
    assert all(before > after for before, after in pairwise(timesteps))


@pytest.mark.parametrize("steps", [250, 50, 7, 33, 1])
def test_each_step_ends_where_the_next_begins(steps: int) -> None:
    """With a constant z_0 the step must land on that level of noise, and on none after the last step."""
    scheduler = ddim_scheduler(steps)
    alpha_bar = torch.cat([GaussianDiffusion().alpha_bar, torch.ones(1, dtype=torch.float64)])
    z_0, noise = torch.randn(2, 5, dtype=torch.float64)
    timesteps = [*scheduler.timesteps.tolist(), -1]
    for now, before in pairwise(timesteps):
        z = alpha_bar[now].sqrt() * z_0 + (1 - alpha_bar[now]).sqrt() * noise
        expected = alpha_bar[before].sqrt() * z_0 + (1 - alpha_bar[before]).sqrt() * noise
        torch.testing.assert_close(scheduler.step(noise, now, z).prev_sample, expected, atol=1e-4, rtol=0)


def test_diffusers_own_scheduler_serves_the_divisors() -> None:
    assert type(ddim_scheduler(250)) is DDIMScheduler
    assert type(ddim_scheduler(7)) is ListedDDIMScheduler


@pytest.mark.parametrize("eta", [0.0, 0.6])
def test_listed_scheduler_equals_diffusers_where_both_are_right(eta: float) -> None:
    theirs = ddim_scheduler(50)
    ours = ListedDDIMScheduler.from_config(theirs.config)
    ours.set_timesteps(50)
    eps, z, fresh = torch.randn(3, 2, 8)
    for t in theirs.timesteps.tolist():
        expected = theirs.step(eps, t, z, eta=eta, variance_noise=fresh if eta else None)
        found = ours.step(eps, t, z, eta=eta, variance_noise=fresh if eta else None)
        torch.testing.assert_close(found.prev_sample, expected.prev_sample)
        torch.testing.assert_close(found.pred_original_sample, expected.pred_original_sample)


@pytest.mark.parametrize(
    ("sampler", "steps", "bound"),
    [("ddim", 1000, 0.005), ("ddim", 300, 0.015), ("ddim", 250, 0.018), ("dpmpp", 100, 0.001)],
)
def test_noise_goes_where_the_probability_flow_carries_it(sampler: str, steps: int, bound: float) -> None:
    noise = torch.linspace(-3, 3, 31, dtype=torch.float64)[:, None]
    found = sample(exact_eps, noise, make_scheduler(sampler, steps))
    assert (found - flow_of_the_ode(noise)).abs().max() < bound


def test_ddim_converges_to_the_flow() -> None:
    noise = torch.linspace(-3, 3, 31, dtype=torch.float64)[:, None]
    errors = [
        (sample(exact_eps, noise, ddim_scheduler(steps)) - flow_of_the_ode(noise)).abs().max()
        for steps in (10, 30, 100, 300)  # divisors of 1000 and others
    ]
    assert all(2 < before / after < 5 for before, after in pairwise(errors))


@pytest.mark.parametrize(
    ("sampler", "steps", "eta"), [("ddim", 1000, 0.0), ("ddim", 1000, 1.0), ("dpmpp", 100, 0.0)]
)
def test_samples_have_the_datas_mean_and_deviation(sampler: str, steps: int, eta: float) -> None:
    noise = torch.randn(8, 3000)
    generators = [torch.Generator().manual_seed(k) for k in range(8)]
    found = sample(exact_eps, noise, make_scheduler(sampler, steps), eta=eta, generators=generators)
    assert float(found.mean()) == pytest.approx(MU, abs=0.01)
    assert float(found.std()) == pytest.approx(S, rel=0.02)


def test_a_samples_noise_does_not_depend_on_its_neighbours() -> None:
    noise = torch.randn(3, 6)

    def run(chosen: list[int]) -> Tensor:
        generators = [torch.Generator().manual_seed(k) for k in chosen]
        return sample(exact_eps, noise[chosen], ddim_scheduler(9), eta=0.8, generators=generators)

    torch.testing.assert_close(run([0, 1, 2])[1:2], run([1]))


def test_the_callback_sees_every_step() -> None:
    seen = []
    sample(exact_eps, torch.zeros(1, 2), ddim_scheduler(4), callback=lambda *step: seen.append(step[:2]))
    assert seen == [(0, 999), (1, 749), (2, 499), (3, 249)]


def test_bad_requests_are_one_sentence() -> None:
    noise = torch.zeros(1, 2)
    for steps in (0, 1001):
        with pytest.raises(BadInput, match="choose 1 to 1000"):
            ddim_scheduler(steps)
    with pytest.raises(BadInput, match="ddim or dpmpp"):
        make_scheduler("euler", 10)
    with pytest.raises(BadInput, match="between 0 and 1"):
        sample(exact_eps, noise, ddim_scheduler(4), eta=1.5, generators=[torch.Generator()])
    with pytest.raises(BadInput, match="only the ddim sampler"):
        sample(exact_eps, noise, dpmpp_scheduler(4), eta=0.5, generators=[torch.Generator()])
    with pytest.raises(BadInput, match="one generator per sample"):
        sample(exact_eps, noise, ddim_scheduler(4), eta=0.5)


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
