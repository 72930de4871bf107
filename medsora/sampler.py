"""Samplers as functions of a denoiser: schedulers (DDIM, DPM-Solver++, UniPC, DDPM) and the sampling loop."""

from __future__ import annotations

import copy
import inspect
from collections.abc import Callable, Sequence
from typing import Any, TypeVar

import torch
from diffusers import (
    DDIMScheduler,
    DDPMScheduler,
    DEISMultistepScheduler,
    DPMSolverMultistepScheduler,
    DPMSolverSinglestepScheduler,
    EulerAncestralDiscreteScheduler,
    EulerDiscreteScheduler,
    PNDMScheduler,
    SchedulerMixin,
    UniPCMultistepScheduler,
)
from diffusers.schedulers.scheduling_ddim import DDIMSchedulerOutput
from torch import Tensor

from medsora.config.choices import SAMPLERS
from medsora.diffusion import BETA_END, BETA_START, CLEAN, TRAIN_STEPS
from medsora.errors import BadInput

Denoise = Callable[[Tensor, Tensor], Tensor]
Multistep = TypeVar("Multistep", bound=SchedulerMixin)
Callback = Callable[[int, int, Tensor], Tensor | None]

SCHEDULE = {
    "num_train_timesteps": TRAIN_STEPS,
    "beta_start": BETA_START,
    "beta_end": BETA_END,
    "beta_schedule": "linear",
    "prediction_type": "epsilon",
    "timestep_spacing": "trailing",
}
LEARNED_VARIANCE = "learned_range"
DENSE_POWER = 2.0  # exponent of the spacing of UniPC's timesteps
NOISE_SCHEDULE = ("num_train_timesteps", "beta_start", "beta_end", "beta_schedule", "trained_betas")


def trailing_timesteps(steps: int, train_steps: int = TRAIN_STEPS) -> list[int]:
    """Return `steps` evenly spaced timesteps from T - 1 downwards; after the last one comes ᾱ = 1.

    Raises `BadInput` unless 1 <= steps <= T.
    """
    if not 1 <= steps <= train_steps:
        raise BadInput(f"{steps} sampling steps are not possible; choose 1 to {train_steps}.")
    return [(2 * k * train_steps + steps) // (2 * steps) - 1 for k in range(steps, 0, -1)]


def dense_timesteps(steps: int, train_steps: int = TRAIN_STEPS, power: float = DENSE_POWER) -> list[int]:
    """Return `steps` timesteps from T - 1 downwards, T·(k/steps)^power - 1: the denser, the nearer to 0.

    `power` 1 gives `trailing_timesteps`, 2 the quadratic ones of Song et al. (2021, appendix D.2). Raises
    `BadInput` unless 1 <= steps <= T.
    """
    trailing_timesteps(steps, train_steps)
    return [
        max(int(train_steps * (k / steps) ** power + 0.5) - 1, k - 1)  # no timestep twice
        for k in range(steps, 0, -1)
    ]


class ListedDDIMScheduler(DDIMScheduler):
    """DDIM for step counts that do not divide T: the previous timestep is the next entry of the list.

    diffusers' own class subtracts T // steps instead, which for such counts is another timestep than the one
    that the next step begins with. Predicts ε; samples are never clipped.
    """

    def set_timesteps(self, num_inference_steps: int, device: str | torch.device | None = None) -> None:
        """Take the timesteps of `trailing_timesteps`."""
        self.num_inference_steps = num_inference_steps
        timesteps = trailing_timesteps(num_inference_steps, self.config.num_train_timesteps)
        self.timesteps = torch.tensor(timesteps, device=device)
        before = [self.alphas_cumprod[t] for t in timesteps[1:]]
        self._alpha_bar_before = dict(zip(timesteps, [*before, self.final_alpha_cumprod], strict=True))

    def step(
        self,
        model_output: Tensor,
        timestep: int,
        sample: Tensor,
        eta: float = 0.0,
        generator: torch.Generator | None = None,
        variance_noise: Tensor | None = None,
        return_dict: bool = True,
    ) -> DDIMSchedulerOutput | tuple[Tensor, Tensor]:
        """One step of Eq. 12 of Song et al. (2021), with σ of their Eq. 16."""
        now, before = self.alphas_cumprod[timestep], self._alpha_bar_before[int(timestep)]
        sigma = eta * ((1 - before) / (1 - now) * (1 - now / before)).sqrt()
        z_0 = (sample - (1 - now).sqrt() * model_output) / now.sqrt()
        z = before.sqrt() * z_0 + (1 - before - sigma**2).sqrt() * model_output
        if eta > 0:
            if variance_noise is None:
                variance_noise = torch.randn(sample.shape, generator=generator).to(sample)
            z = z + sigma * variance_noise
        return DDIMSchedulerOutput(z, z_0) if return_dict else (z, z_0)


def ddim_scheduler(steps: int, **schedule: Any) -> DDIMScheduler:
    """Return DDIM with its timesteps set: diffusers' own where `steps` divides T, else the listed kind.

    `schedule` may replace settings of MedSora's noise schedule (`NOISE_SCHEDULE`).
    """
    schedule = SCHEDULE | schedule
    timesteps = trailing_timesteps(steps, schedule["num_train_timesteps"])
    kind = ListedDDIMScheduler if schedule["num_train_timesteps"] % steps else DDIMScheduler
    scheduler = kind(clip_sample=False, set_alpha_to_one=True, **schedule)
    scheduler.set_timesteps(steps)
    assert scheduler.timesteps.tolist() == timesteps
    return scheduler


def dpmpp_scheduler(steps: int, **schedule: Any) -> DPMSolverMultistepScheduler:
    """Return DPM-Solver++ of second order over the same timesteps, for good samples in 20 to 50 steps."""
    schedule = SCHEDULE | schedule
    scheduler = DPMSolverMultistepScheduler(
        algorithm_type="dpmsolver++", solver_order=2, final_sigmas_type="zero", **schedule
    )
    scheduler.set_timesteps(timesteps=trailing_timesteps(steps, schedule["num_train_timesteps"]))
    scheduler.set_begin_index(0)
    return scheduler


def unipc_scheduler(steps: int, power: float = DENSE_POWER, **settings: Any) -> UniPCMultistepScheduler:
    """Return UniPC of second order (Zhao et al., 2023) over `dense_timesteps`, for samples in 6 to 30 steps.

    `settings` are those of the noise schedule, and diffusers' of the solver.
    """
    scheduler = UniPCMultistepScheduler(**SCHEDULE | {"final_sigmas_type": "zero"} | settings)
    return with_timesteps(scheduler, dense_timesteps(steps, scheduler.config.num_train_timesteps, power))


def with_timesteps(scheduler: Multistep, timesteps: Sequence[int]) -> Multistep:
    """Return a multistep `scheduler` set to `timesteps`, each at its own noise level, then none."""
    scheduler.set_timesteps(len(timesteps))
    scheduler.timesteps = torch.tensor(timesteps)
    alpha_bar = scheduler.alphas_cumprod[scheduler.timesteps]
    scheduler.sigmas = torch.cat([((1 - alpha_bar) / alpha_bar).sqrt(), alpha_bar.new_zeros(1)])
    scheduler.set_begin_index(0)
    return scheduler


def ddpm_scheduler(steps: int, **schedule: Any) -> DDPMScheduler:
    """Return ancestral sampling over `steps` timesteps spread evenly from 0 to T - 1, with learned variance.

    So Nichol & Dhariwal (2021), and Latte and Endora after them, sample in 250 steps.
    """
    trailing_timesteps(steps, (SCHEDULE | schedule)["num_train_timesteps"])
    if steps < 2:
        raise BadInput("ddpm spreads its timesteps from 0 to T - 1 and needs at least 2 steps, not 1.")
    spread = SCHEDULE | {"timestep_spacing": "linspace"} | schedule
    scheduler = DDPMScheduler(clip_sample=False, variance_type=LEARNED_VARIANCE, **spread)
    scheduler.set_timesteps(steps)
    return scheduler


def learns_variance(scheduler: SchedulerMixin) -> bool:
    """Return whether `scheduler` takes ε with the denoiser's variance behind it, along the frames."""
    return scheduler.config.get("variance_type") == LEARNED_VARIANCE


def make_scheduler(sampler: str, steps: int, **schedule: Any) -> SchedulerMixin:
    """Return a fresh scheduler by its name in `SAMPLERS`. Raises `BadInput` for another name."""
    makers = dict(
        zip(SAMPLERS, (ddim_scheduler, dpmpp_scheduler, unipc_scheduler, ddpm_scheduler), strict=True)
    )
    if sampler not in makers:
        raise BadInput(f"there is no sampler {sampler!r}; choose {' or '.join(SAMPLERS)}.")
    return makers[sampler](steps, **schedule)


SCHEDULERS = {
    kind.__name__: kind
    for kind in (
        DDIMScheduler,
        ListedDDIMScheduler,
        DDPMScheduler,
        DEISMultistepScheduler,
        DPMSolverMultistepScheduler,
        DPMSolverSinglestepScheduler,
        EulerAncestralDiscreteScheduler,
        EulerDiscreteScheduler,
        PNDMScheduler,
        UniPCMultistepScheduler,
    )
}


def check_scheduler(scheduler: SchedulerMixin) -> None:
    """Raise `BadInput` unless `scheduler` can sample from a denoiser that predicts ε at whole timesteps."""
    if type(scheduler) not in SCHEDULERS.values():
        raise BadInput(f"a {type(scheduler).__name__} cannot sample here; there are {', '.join(SCHEDULERS)}.")
    supported = {
        "num_train_timesteps": (TRAIN_STEPS,),
        "prediction_type": ("epsilon",),
        "rescale_betas_zero_snr": (False,),
        "use_flow_sigmas": (False,),
        "variance_type": (
            *(None, "fixed_small", "fixed_small_log", "fixed_large", "fixed_large_log"),
            *((LEARNED_VARIANCE,) if isinstance(scheduler, DDPMScheduler) else ()),
        ),
    }
    for name, values in supported.items():
        value = scheduler.config.get(name, values[0])
        if value not in values:
            raise BadInput(
                f"the scheduler's {name} is {value!r}, but the denoiser predicts noise at timesteps 0 to "
                f"{TRAIN_STEPS - 1}; {name} can be {' or '.join(map(repr, values))}."
            )


def prepare_scheduler(scheduler: SchedulerMixin, steps: int, sampler: str | None = None) -> SchedulerMixin:
    """Return a fresh copy of `scheduler` with its timesteps set, or `sampler` over its noise schedule.

    DDIM with trailing timesteps takes those of `trailing_timesteps` (`ListedDDIMScheduler`). Raises
    `BadInput` as `check_scheduler` does, and for steps or timesteps that are not possible.
    """
    check_scheduler(scheduler)
    config = scheduler.config
    if sampler is not None:
        schedule = {name: config[name] for name in NOISE_SCHEDULE if name in config}
        return make_scheduler(sampler, steps, **schedule)
    trailing_timesteps(steps)
    if (
        type(scheduler) is DDIMScheduler
        and config.timestep_spacing == "trailing"
        and TRAIN_STEPS % steps
        and not (config.clip_sample or config.thresholding)
    ):
        fresh = ListedDDIMScheduler.from_config(config)
    else:
        fresh = copy.deepcopy(scheduler)
    name = type(scheduler).__name__
    if isinstance(fresh, PNDMScheduler) and not config.skip_prk_steps and steps < fresh.pndm_order:
        raise BadInput(
            f"the {name} begins with Runge-Kutta steps and needs at least {fresh.pndm_order} steps, not "
            f"{steps}; set its skip_prk_steps to True for fewer."
        )
    try:
        fresh.set_timesteps(steps)
    except (ValueError, ImportError) as error:
        raise BadInput(f"the {name} cannot take {steps} steps: {' '.join(str(error).split())}") from error
    wrong = [t for t in fresh.timesteps.tolist() if t != int(t) or not 0 <= t < TRAIN_STEPS]
    if wrong:
        raise BadInput(
            f"the {name} needs timestep {wrong[0]:g}, but the denoiser was trained at whole ones from 0 "
            f"to {TRAIN_STEPS - 1}; set timestep_spacing to 'trailing', steps_offset to 0 and "
            "use_karras_sigmas to False."
        )
    if hasattr(fresh, "set_begin_index"):
        fresh.set_begin_index(0)
    return fresh


@torch.no_grad()
def sample(
    denoise: Denoise,
    noise: Tensor,
    scheduler: SchedulerMixin,
    *,
    eta: float = 0.0,
    generators: Sequence[torch.Generator] | None = None,
    callback: Callback | None = None,
    interrupted: Callable[[], bool] = lambda: False,
    given: Tensor | None = None,
) -> Tensor:
    """Turn noise (B, ...) into samples: the sampler as a function of model, noise and schedule.

    Args:
        denoise: (z (B, n, ...), t (B,)) -> ε (B, n, ...), or (B, 2n, ...) with the variance where the
            scheduler `learns_variance`.
        noise: standard normal; its type and device are those of the whole computation.
        scheduler: fresh from `make_scheduler` or `prepare_scheduler`.
        eta: 0 is deterministic DDIM, 1 as random as ancestral sampling.
        generators: with eta > 0 or a scheduler that draws noise, one CPU generator per sample, so that a
            sample's noise does not depend on those beside it.
        callback: called after every step with its number (from 0), its timestep and the latents; latents that
            it returns take their place.
        interrupted: called before every step; True ends sampling and returns the latents so far.
        given: the first latents (B or 1, k, ...) if they are known: they stay as they are, free of noise, and
            `denoise` gets timesteps (B, n) that mark them (`CLEAN`).

    Raises:
        BadInput: for eta outside 0..1, with a scheduler that has none, or without generators.
    """
    stochastic = _check_eta(eta, scheduler, generators)
    draws = "generator" in inspect.signature(scheduler.step).parameters and not _has_eta(scheduler)
    options = {"generator": list(generators)} if draws and generators is not None else {}
    z = _beginning_with(given, noise * scheduler.init_noise_sigma)
    for number, t in enumerate(scheduler.timesteps):
        if interrupted():
            break
        scaled = _beginning_with(given, scheduler.scale_model_input(z, t))
        eps = denoise(scaled, _timesteps(int(t), z, given))
        if stochastic:
            options = {"eta": eta, "variance_noise": noise_like(z, generators)}
        z = _beginning_with(given, scheduler.step(eps, t, z, return_dict=False, **options)[0])
        if callback is not None and (replaced := callback(number, int(t), z)) is not None:
            z = _beginning_with(given, replaced)
            if hasattr(scheduler, "last_sample"):
                scheduler.last_sample = None  # UniPC's corrector would go back to before they were replaced
    return z


def _beginning_with(given: Tensor | None, z: Tensor) -> Tensor:
    if given is None:
        return z
    return torch.cat([given.to(z).expand(len(z), *given.shape[1:]), z[:, given.shape[1] :]], dim=1)


def _timesteps(t: int, z: Tensor, given: Tensor | None) -> Tensor:
    if given is None:
        return torch.full((z.shape[0],), t, device=z.device)
    timesteps = torch.full(z.shape[:2], t, device=z.device)
    timesteps[:, : given.shape[1]] = CLEAN
    return timesteps


def noise_like(z: Tensor, generators: Sequence[torch.Generator]) -> Tensor:
    """Return standard normal noise of z's shape: sample k from generator k, in float32 on the CPU."""
    drawn = torch.stack([torch.randn(z.shape[1:], generator=generator) for generator in generators])
    if z.is_cuda:  # from pinned memory, so that the host need not wait
        drawn = drawn.pin_memory()
    return drawn.to(z, non_blocking=z.is_cuda)


def _has_eta(scheduler: SchedulerMixin) -> bool:
    return isinstance(scheduler, DDIMScheduler)


def _check_eta(eta: float, scheduler: SchedulerMixin, generators: Sequence | None) -> bool:
    if not 0 <= eta <= 1:
        raise BadInput(f"eta must lie between 0 and 1, not {eta}.")
    if eta > 0 and not _has_eta(scheduler):
        raise BadInput(f"eta is {eta}, but only the ddim sampler has an eta; leave it at 0.")
    if eta > 0 and generators is None:
        raise BadInput("eta > 0 draws noise at every step; give one generator per sample.")
    return eta > 0
