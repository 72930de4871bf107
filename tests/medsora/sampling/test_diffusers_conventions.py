"""medsora.sampling.pipeline, medsora.saved.pipeline, medsora.sampler: what diffusers promises of a pipeline.

diffusers' own loops and functions are the reference.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import diffusers
import numpy as np
import pytest
import torch
from diffusers import DDIMScheduler, EulerAncestralDiscreteScheduler, EulerDiscreteScheduler, SchedulerMixin
from torch import Tensor

from medsora.data.reading.pixels import frames_to_video
from medsora.errors import BadInput
from medsora.sampler import ddim_scheduler
from medsora.sampling.pipeline import MedSoraPipeline
from medsora.saved.find import find_model
from medsora.saved.pipeline import saved_sampler
from tests.support.tiny_pipeline import GEOMETRY, tiny_denoiser, tiny_pipeline, tiny_vae

STEPS = 4
OURS = ddim_scheduler(250).config


@pytest.fixture
def pipeline() -> MedSoraPipeline:
    pipeline = tiny_pipeline()
    pipeline.denoiser.eval()  # the reference has no dropout either
    return pipeline


def latents(pipeline: MedSoraPipeline, **options: Any) -> Tensor:
    options = {"seeds": [5], "num_inference_steps": STEPS, "output_type": "latent"} | options
    return pipeline(**options).frames


# Schedulers


@torch.no_grad()
def latents_of_diffusers(pipeline: MedSoraPipeline, scheduler: SchedulerMixin, seed: int) -> Tensor:
    """What a loop of diffusers' pipelines makes of the denoiser."""
    generator = torch.Generator().manual_seed(seed)
    scheduler.set_timesteps(STEPS)
    z = torch.randn(2, 4, 4, 2, generator=generator)[None] * scheduler.init_noise_sigma
    draws = {"generator": generator} if "Ancestral" in type(scheduler).__name__ else {}
    for t in scheduler.timesteps:
        eps = pipeline.denoiser(scheduler.scale_model_input(z, t), t[None]).eps
        z = scheduler.step(eps, t, z, **draws).prev_sample
    return z


@pytest.mark.parametrize(
    ("name", "settings"),
    [
        ("DDIM", {}),
        ("DDIM", {"beta_schedule": "scaled_linear"}),
        ("DDIM", {"beta_end": 0.01}),
        ("DDIM", {"timestep_spacing": "leading"}),
        ("DDIM", {"timestep_spacing": "linspace"}),
        ("DDIM", {"clip_sample": True, "clip_sample_range": 0.1}),
        ("DPMSolverMultistep", {}),
        ("DPMSolverMultistep", {"use_karras_sigmas": True}),
        ("DPMSolverSinglestep", {}),
        ("DEISMultistep", {}),
        ("UniPCMultistep", {}),
        ("PNDM", {}),
        ("EulerDiscrete", {}),
        ("EulerDiscrete", {"timestep_spacing": "leading", "beta_schedule": "scaled_linear"}),
        ("EulerAncestralDiscrete", {}),
    ],
)
def test_the_scheduler_that_is_set_samples(pipeline: MedSoraPipeline, name: str, settings: dict) -> None:
    plain = latents(pipeline)
    scheduler = getattr(diffusers, f"{name}Scheduler").from_config(OURS, **settings)
    pipeline.scheduler = scheduler
    found = latents(pipeline)
    torch.testing.assert_close(found, latents_of_diffusers(pipeline, scheduler, 5), atol=1e-4, rtol=1e-4)
    assert torch.equal(found, plain) == ((name, settings) == ("DDIM", {}))
    assert torch.equal(found, latents(pipeline))  # a call leaves nothing behind


@pytest.mark.parametrize("name", ["DDPM", "EulerAncestralDiscrete"])
def test_noise_of_a_scheduler_belongs_to_its_video(pipeline: MedSoraPipeline, name: str) -> None:
    pipeline.scheduler = getattr(diffusers, f"{name}Scheduler").from_config(OURS)
    together = latents(pipeline, seeds=[5, 6, 7])
    torch.testing.assert_close(together[1:2], latents(pipeline, seeds=[6]), atol=1e-4, rtol=1e-4)
    assert not torch.allclose(together[:1], together[1:2])


def test_a_named_sampler_keeps_the_noise_schedule_that_is_set(pipeline: MedSoraPipeline) -> None:
    plain = latents(pipeline, sampler="ddim")
    pipeline.scheduler = EulerDiscreteScheduler.from_config(OURS, beta_schedule="scaled_linear")
    scaled = DDIMScheduler.from_config(OURS, beta_schedule="scaled_linear")
    found = latents(pipeline, sampler="ddim")
    torch.testing.assert_close(found, latents_of_diffusers(pipeline, scaled, 5), atol=1e-4, rtol=1e-4)
    assert not torch.allclose(found, plain, atol=1e-2)


def test_given_frames_are_kept_where_latents_are_scaled() -> None:
    geometry = GEOMETRY | {"frames": 17}
    pipeline = MedSoraPipeline(tiny_denoiser(), tiny_vae(), **geometry, given_frames=[1])
    pipeline.scheduler = EulerDiscreteScheduler.from_config(OURS)
    picture = np.random.default_rng(0).integers(0, 256, (1, 32, 16, 3), dtype=np.uint8)
    forward, seen = pipeline.denoiser.forward, []

    def watched(z: Tensor, t: Tensor, **options: Any) -> Any:
        seen.append(z[:, :1])
        return forward(z, t, **options)

    pipeline.denoiser.forward = watched
    found = latents(pipeline, first_frames=picture)
    with torch.no_grad():
        given = pipeline.vae.encode(frames_to_video(picture)[None])
    for z in (*seen, found[:, :1]):
        torch.testing.assert_close(z, given)


UNSUPPORTED = [
    (DDIMScheduler.from_config(OURS, prediction_type="v_prediction"), "prediction_type is 'v_prediction'"),
    (EulerDiscreteScheduler.from_config(OURS, prediction_type="sample"), "prediction_type is 'sample'"),
    (DDIMScheduler.from_config(OURS, rescale_betas_zero_snr=True), "rescale_betas_zero_snr is True"),
    (DDIMScheduler.from_config(OURS, num_train_timesteps=500), "num_train_timesteps is 500"),
    (
        diffusers.DDPMScheduler.from_config(OURS, variance_type="learned_range"),
        "variance_type is 'learned_range'",
    ),
    (diffusers.UniPCMultistepScheduler.from_config(OURS, use_flow_sigmas=True), "use_flow_sigmas is True"),
    (diffusers.FlowMatchEulerDiscreteScheduler(), "FlowMatchEulerDiscreteScheduler cannot sample"),
]


@pytest.mark.parametrize(("scheduler", "sentence"), UNSUPPORTED)
def test_a_scheduler_that_cannot_sample_is_refused(
    pipeline: MedSoraPipeline, tmp_path: Path, scheduler: SchedulerMixin, sentence: str
) -> None:
    pipeline.scheduler = scheduler
    for attempt in (
        lambda: latents(pipeline),
        lambda: latents(pipeline, sampler="ddim"),
        lambda: pipeline.save_pretrained(tmp_path / "model"),
        lambda: MedSoraPipeline(pipeline.denoiser, pipeline.vae, scheduler),
    ):
        with pytest.raises(BadInput, match=sentence) as caught:
            attempt()
        assert "\n" not in str(caught.value)
    assert not (tmp_path / "model").exists()
    tiny_pipeline().save_pretrained(tmp_path / "model")
    scheduler.save_pretrained(tmp_path / "model" / "scheduler")
    with pytest.raises(BadInput, match=sentence.replace(" cannot sample", ".*cannot sample")):
        MedSoraPipeline.from_pretrained(tmp_path / "model")


@pytest.mark.parametrize(
    ("scheduler", "sentence"),
    [
        (
            EulerDiscreteScheduler.from_config(OURS, timestep_spacing="linspace"),
            "timestep_spacing to 'trailing'",
        ),
        (EulerDiscreteScheduler.from_config(OURS, use_karras_sigmas=True), "use_karras_sigmas to False"),
        (DDIMScheduler.from_config(OURS, timestep_spacing="leading", steps_offset=300), "steps_offset to 0"),
    ],
)
def test_timesteps_that_were_not_trained_are_refused(
    pipeline: MedSoraPipeline, scheduler: SchedulerMixin, sentence: str
) -> None:
    pipeline.scheduler = scheduler
    with pytest.raises(BadInput, match=f"asks for timestep .*{sentence}"):
        latents(pipeline, num_inference_steps=6)


def test_another_scheduler_is_saved_and_loaded(pipeline: MedSoraPipeline, tmp_path: Path) -> None:
    pipeline.save_pretrained(tmp_path / "ddim")
    assert saved_sampler(find_model(tmp_path / "ddim")) == ("ddim", None)
    pipeline.scheduler = EulerAncestralDiscreteScheduler.from_config(OURS)
    pipeline.save_pretrained(tmp_path / "euler")
    loaded = MedSoraPipeline.from_pretrained(tmp_path / "euler")
    assert type(loaded.scheduler) is EulerAncestralDiscreteScheduler
    assert torch.equal(latents(loaded), latents(pipeline))
    name, settings = saved_sampler(find_model(tmp_path / "euler"))
    assert (name, settings["beta_end"]) == ("EulerAncestralDiscreteScheduler", 0.02)
    assert json.dumps(settings)
