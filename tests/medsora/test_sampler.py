"""The samplers against a Gaussian whose denoiser is known, and their timesteps."""

from __future__ import annotations

from itertools import pairwise

import numpy as np
import pytest
import torch
from diffusers import DDIMScheduler
from torch import Tensor

from medsora.config.choices import SAMPLERS
from medsora.diffusion import GaussianDiffusion
from medsora.errors import BadInput
from medsora.sampler import (
    SCHEDULERS,
    ListedDDIMScheduler,
    ddim_scheduler,
    ddpm_scheduler,
    dense_timesteps,
    dpmpp_scheduler,
    make_scheduler,
    prepare_scheduler,
    sample,
    trailing_timesteps,
    unipc_scheduler,
)

MU, S = 0.7, 0.3


def exact_eps(z: Tensor, t: Tensor) -> Tensor:
    """What the best possible denoiser answers if all data are N(MU, S²)."""
    alpha_bar = GaussianDiffusion().alpha_bar[t].reshape(-1, *[1] * (z.ndim - 1)).to(z)
    variance = alpha_bar * S**2 + 1 - alpha_bar
    return (1 - alpha_bar).sqrt() * (z - alpha_bar.sqrt() * MU) / variance


def flow_of_the_ode(noise: Tensor) -> Tensor:
    """Where the probability flow carries noise at t = 999: quantile to quantile."""
    alpha_bar = GaussianDiffusion().alpha_bar[-1].to(noise)
    return MU + S * (noise - alpha_bar.sqrt() * MU) / (alpha_bar * S**2 + 1 - alpha_bar).sqrt()


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


@pytest.mark.parametrize("steps", [1, 2, 7, 30, 333, 999, 1000])
@pytest.mark.parametrize("power", [1.25, 1.5, 2.0])
def test_dense_timesteps_fall_from_the_top_by_ever_less(steps: int, power: float) -> None:
    timesteps = dense_timesteps(steps, power=power)
    gaps = [before - after for before, after in pairwise(timesteps)]
    assert len(timesteps) == steps
    assert (timesteps[0], timesteps[-1] >= 0) == (999, True)
    assert all(gap >= 1 for gap in gaps)
    assert all(before >= after - 1 for before, after in pairwise(gaps))  # but for rounding
    assert dense_timesteps(steps, power=1.0) == trailing_timesteps(steps)


def test_timesteps_of_unipc_are_pinned() -> None:
    scheduler = unipc_scheduler(8)
    assert scheduler.timesteps.tolist() == [999, 765, 562, 390, 249, 140, 62, 15]
    assert scheduler.timesteps.tolist() == dense_timesteps(8)
    alpha_bar = GaussianDiffusion().alpha_bar[dense_timesteps(8)]
    expected = [*((1 - alpha_bar) / alpha_bar).sqrt().tolist(), 0]
    assert scheduler.sigmas.tolist() == pytest.approx(expected, rel=1e-4)


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
    [
        ("ddim", 1000, 0.005),
        ("ddim", 300, 0.015),
        ("ddim", 250, 0.018),
        ("dpmpp", 100, 0.001),
        ("unipc", 30, 0.008),
    ],
)
def test_noise_goes_where_the_probability_flow_carries_it(sampler: str, steps: int, bound: float) -> None:
    noise = torch.linspace(-3, 3, 31, dtype=torch.float64)[:, None]
    found = sample(exact_eps, noise, make_scheduler(sampler, steps))
    assert (found - flow_of_the_ode(noise)).abs().max() < bound


@pytest.mark.parametrize("steps", [6, 8, 10, 20])
def test_few_steps_of_unipc_come_nearest(steps: int) -> None:
    noise = torch.linspace(-3, 3, 31, dtype=torch.float64)[:, None]
    unipc, dpmpp, ddim = (
        float((sample(exact_eps, noise, make_scheduler(name, steps)) - flow_of_the_ode(noise)).abs().max())
        for name in ("unipc", "dpmpp", "ddim")
    )
    assert unipc < min(dpmpp, ddim) / 2


@pytest.mark.parametrize("name", SAMPLERS[:-1])
def test_latents_that_a_callback_replaces_are_gone_on_with(name: str) -> None:
    """The last step ends at z_0, which ε gives from the latents put in place before it, and those alone."""
    scheduler, start = make_scheduler(name, 4), torch.randn(1, 5)
    before = float(scheduler.alphas_cumprod[scheduler.timesteps[-1]])
    found = sample(
        lambda z, t: torch.zeros_like(z),
        start,
        scheduler,
        callback=lambda number, t, z: torch.full_like(z, 2.0) if number == 2 else None,
    )
    torch.testing.assert_close(found, torch.full_like(found, 2 / before**0.5))


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


def test_ddpm_takes_the_published_respaced_steps() -> None:
    """Each a rounded multiple of 999 / 249 from 0 up, as guided-diffusion's `space_timesteps` takes them."""
    timesteps = ddpm_scheduler(250).timesteps.tolist()
    assert timesteps == [round(k * 999 / 249) for k in range(249, -1, -1)]
    assert timesteps[:3] + timesteps[-3:] == [999, 995, 991, 8, 4, 0]


def test_a_ddpm_step_mixes_the_respaced_variances_as_learned() -> None:
    scheduler, alpha_bar = ddpm_scheduler(250), GaussianDiffusion().alpha_bar
    z, eps, share = torch.randn(2, 3, 1, 2, 2), torch.randn(2, 3, 1, 2, 2), torch.rand(2, 3, 1, 2, 2)
    generators = [torch.Generator().manual_seed(seed) for seed in (1, 2)]
    noise = torch.cat(
        [torch.randn(1, 3, 1, 2, 2, generator=torch.Generator().manual_seed(s)) for s in (1, 2)]
    )
    scheduler.timesteps = scheduler.timesteps[125:]
    now, before = (float(alpha_bar[t]) for t in scheduler.timesteps[:2].tolist())
    stopped = []  # after one step
    found = sample(
        lambda z, t: torch.cat((eps, 2 * share - 1), dim=1),
        z,
        scheduler,
        generators=generators,
        callback=lambda number, t, z: stopped.append(t),
        interrupted=lambda: bool(stopped),
    )
    beta = 1 - now / before
    log_low, log_high = np.log((1 - before) / (1 - now) * beta), np.log(beta)
    sigma = torch.exp(0.5 * (share * log_high + (1 - share) * log_low))
    z_0 = (z - (1 - now) ** 0.5 * eps) / now**0.5
    mean = before**0.5 * beta / (1 - now) * z_0 + (now / before) ** 0.5 * (1 - before) / (1 - now) * z
    torch.testing.assert_close(found, mean + sigma * noise, atol=1e-4, rtol=1e-4)


def test_ddpm_of_the_best_denoiser_draws_the_data() -> None:
    generators = [torch.Generator().manual_seed(seed) for seed in range(4)]
    noise = torch.randn(4, 50, 1, 4, 4, generator=torch.Generator().manual_seed(9))

    def denoise(z: Tensor, t: Tensor) -> Tensor:
        return torch.cat((exact_eps(z, t), -torch.ones_like(z)), dim=1)

    found = sample(denoise, noise, ddpm_scheduler(250), generators=generators)
    assert float(found.mean()) == pytest.approx(MU, abs=0.02)
    assert float(found.std()) == pytest.approx(S, abs=0.02)


@pytest.mark.parametrize("name", SCHEDULERS)
def test_too_few_steps_are_one_sentence(name: str) -> None:
    scheduler = SCHEDULERS[name].from_config(make_scheduler("ddim", 250).config)
    least = 4 if name == "PNDMScheduler" else 1
    for steps in range(1, least):
        with pytest.raises(BadInput, match=f"at least {least} steps, not {steps}; set"):
            prepare_scheduler(scheduler, steps)
    assert len(prepare_scheduler(scheduler, least).timesteps) >= least


def test_ddpm_needs_two_steps() -> None:
    """With one, the denoiser would be given noise at the timestep of a clean video."""
    with pytest.raises(BadInput, match="at least 2 steps"):
        ddpm_scheduler(1)
