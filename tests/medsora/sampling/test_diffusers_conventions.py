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
from diffusers import (
    DDIMScheduler,
    DiffusionPipeline,
    EulerAncestralDiscreteScheduler,
    EulerDiscreteScheduler,
    SchedulerMixin,
)
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


# Saving and loading


def test_components_make_the_same_pipeline() -> None:
    pipeline = MedSoraPipeline(
        tiny_denoiser(classes=2), tiny_vae(), **GEOMETRY, labels=["bleeding", "polyp"], given_frames=[1]
    )
    pipeline.scheduler = EulerDiscreteScheduler.from_config(OURS)
    for other in (MedSoraPipeline(**pipeline.components), MedSoraPipeline.from_pipe(pipeline)):
        assert other.denoiser is pipeline.denoiser
        assert other.scheduler is pipeline.scheduler
        for key in (*GEOMETRY, "labels", "given_frames"):
            assert other.config[key] == pipeline.config[key], key


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        ({"variant": "fp16"}, "cannot take variant"),
        ({"max_shard_size": "2MB"}, "cannot take max_shard_size"),
        ({"safe_serialization": False}, "cannot take safe_serialization=False"),
        ({"push_to_hub": True}, "call push_to_hub"),
    ],
)
def test_what_could_not_be_loaded_is_not_saved(
    pipeline: MedSoraPipeline, tmp_path: Path, options: dict, sentence: str
) -> None:
    with pytest.raises(BadInput, match=sentence) as caught:
        pipeline.save_pretrained(tmp_path / "model", **options)
    assert "\n" not in str(caught.value)
    assert not (tmp_path / "model").exists()
    defaults = {"variant": None, "max_shard_size": None, "safe_serialization": True, "push_to_hub": False}
    pipeline.save_pretrained(tmp_path / "model", **{key: defaults[key] for key in options})
    assert torch.equal(latents(MedSoraPipeline.from_pretrained(tmp_path / "model")), latents(pipeline))


def test_numpys_numbers_in_the_geometry_are_saved(tmp_path: Path) -> None:
    geometry = {"frames": np.int64(8), "size": np.array([32, 16]), "fps": np.float32(8)}
    MedSoraPipeline(tiny_denoiser(), tiny_vae(), **geometry).save_pretrained(tmp_path)
    config = MedSoraPipeline.from_pretrained(tmp_path).config
    assert (config.frames, config.size, config.fps) == (8, [32, 16], 8)
    with pytest.raises(BadInput, match="printable"):
        MedSoraPipeline(tiny_denoiser(classes=1), tiny_vae(), labels=["a\nb"])


def test_diffusers_own_class_loads_it(pipeline: MedSoraPipeline, tmp_path: Path) -> None:
    pipeline.scheduler = EulerDiscreteScheduler.from_config(OURS)
    pipeline.save_pretrained(tmp_path)
    loaded = DiffusionPipeline.from_pretrained(tmp_path)
    assert type(loaded) is MedSoraPipeline
    assert {key: loaded.config[key] for key in GEOMETRY} == GEOMETRY
    assert torch.equal(latents(loaded), latents(pipeline))


@pytest.mark.parametrize(
    ("options", "dtype"),
    [
        ({"dtype": "fp16"}, torch.float16),
        ({"dtype": "bfloat16"}, torch.bfloat16),
        ({"torch_dtype": "float16"}, torch.float16),
        ({"torch_dtype": torch.bfloat16, "use_safetensors": True, "variant": None}, torch.bfloat16),
        ({"dtype": torch.float16, "torch_dtype": "fp16"}, torch.float16),
        ({"vae_dtype": "bf16"}, torch.float32),
        ({}, torch.float32),
    ],
)
def test_a_dtype_may_be_a_word(
    pipeline: MedSoraPipeline, tmp_path: Path, options: dict, dtype: torch.dtype
) -> None:
    pipeline.save_pretrained(tmp_path)
    loaded = MedSoraPipeline.from_pretrained(tmp_path, **options)
    assert loaded.denoiser.dtype == dtype
    assert loaded.vae.dtype == (torch.bfloat16 if "vae_dtype" in options else dtype)


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        ({"dtype": "float8"}, "dtype 'float8' is unknown"),
        ({"dtype": torch.int8}, "dtype torch.int8 is unknown"),
        ({"dtype": "fp32", "torch_dtype": "fp16"}, "older name"),
        ({"variant": "fp16"}, "cannot take variant"),
        ({"device_map": "balanced"}, "cannot take device_map"),
    ],
)
def test_what_cannot_be_loaded_is_one_sentence(
    pipeline: MedSoraPipeline, tmp_path: Path, options: dict, sentence: str
) -> None:
    pipeline.save_pretrained(tmp_path)
    with pytest.raises(BadInput, match=sentence):
        MedSoraPipeline.from_pretrained(tmp_path, **options)
