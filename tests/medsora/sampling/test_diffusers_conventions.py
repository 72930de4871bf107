"""medsora.sampling.pipeline, medsora.saved.pipeline, medsora.sampler: what diffusers promises of a pipeline.

diffusers' own loops and functions are the reference.
"""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any
from unittest import mock

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
from diffusers.pipelines import pipeline_utils
from diffusers.utils import export_to_video
from diffusers.video_processor import VideoProcessor
from torch import Tensor

from medsora.data.reading.pixels import frames_to_video
from medsora.data.reading.video_io import read_frames
from medsora.errors import BadInput, NonFiniteVideo
from medsora.sampler import ddim_scheduler
from medsora.sampling.pipeline import MedSoraPipeline
from medsora.sampling.tokens import EndoGenPipeline
from medsora.saved.find import find_model
from medsora.saved.manifest import MANIFEST
from medsora.saved.pipeline import saved_sampler
from tests.support.endogen.tiny_tokenizer import write_run
from tests.support.paths import ROOT
from tests.support.patience import PATIENCE_S
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
        diffusers.DPMSolverMultistepScheduler.from_config(OURS, variance_type="learned_range"),
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
    (tmp_path / "model" / MANIFEST).unlink()
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
    with pytest.raises(BadInput, match=f"needs timestep .*{sentence}"):
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
    with mock.patch.object(pipeline_utils.logger, "warning") as warned:
        loaded = DiffusionPipeline.from_pretrained(tmp_path)
    assert type(loaded) is MedSoraPipeline
    assert not warned.called, warned.call_args
    assert {key: loaded.config[key] for key in GEOMETRY} == GEOMETRY
    assert torch.equal(latents(loaded), latents(pipeline))


def test_diffusers_own_class_loads_endogen(tmp_path: Path) -> None:
    pipeline = EndoGenPipeline.from_pretrained(write_run(tmp_path / "run"))
    pipeline.save_pretrained(tmp_path / "saved")
    with mock.patch.object(pipeline_utils.logger, "warning") as warned:
        loaded = DiffusionPipeline.from_pretrained(tmp_path / "saved")
    assert type(loaded) is EndoGenPipeline
    assert not warned.called, warned.call_args
    codes = [each(seeds=[5], output_type="codes").frames for each in (loaded, pipeline)]
    assert np.array_equal(*codes)


def test_diffusers_own_class_loads_it_after_a_plain_import(pipeline: MedSoraPipeline, tmp_path: Path) -> None:
    """`import medsora` loads neither torch nor diffusers, whose names it adds to once they are there."""
    pipeline.save_pretrained(tmp_path)
    code = (
        "import sys, medsora\n"
        "assert not {'torch', 'diffusers'} & set(sys.modules)\n"
        "from diffusers import DiffusionPipeline\n"
        "print(type(DiffusionPipeline.from_pretrained(sys.argv[1])).__name__)"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, str(tmp_path)],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=PATIENCE_S,
        check=False,
    )
    assert done.stdout.strip() == "MedSoraPipeline", done.stderr
    assert diffusers.EndoGenPipeline is EndoGenPipeline
    with pytest.raises(AttributeError, match="module diffusers has no attribute NoSuchPipeline"):
        _ = diffusers.NoSuchPipeline


@pytest.mark.parametrize(
    ("options", "dtype"),
    [
        ({"dtype": "fp16"}, torch.float16),
        ({"dtype": "bfloat16"}, torch.bfloat16),
        ({"torch_dtype": "float16"}, torch.float16),
        ({"torch_dtype": torch.bfloat16, "use_safetensors": True, "variant": None}, torch.bfloat16),
        ({"use_safetensors": None, "low_cpu_mem_usage": True}, torch.float32),
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
        ({"use_safetensors": False}, "cannot take use_safetensors"),
    ],
)
def test_what_cannot_be_loaded_is_one_sentence(
    pipeline: MedSoraPipeline, tmp_path: Path, options: dict, sentence: str
) -> None:
    pipeline.save_pretrained(tmp_path)
    with pytest.raises(BadInput, match=sentence):
        MedSoraPipeline.from_pretrained(tmp_path, **options)


def test_no_part_is_loaded_from_a_pickle(pipeline: MedSoraPipeline, tmp_path: Path) -> None:
    pipeline.save_pretrained(tmp_path)
    for name in ("denoiser", "vae"):
        with pytest.raises(ValueError, match="pickles are never read"):
            type(getattr(pipeline, name)).from_pretrained(tmp_path / name, use_safetensors=False)


def test_offloading_is_refused(pipeline: MedSoraPipeline) -> None:
    for method in ("enable_model_cpu_offload", "enable_sequential_cpu_offload"):
        with pytest.raises(BadInput, match="offloading is not supported"):
            getattr(pipeline, method)(device="cpu")


# Calls


def test_a_list_of_generators_gives_what_separate_calls_give(pipeline: MedSoraPipeline) -> None:
    def generators() -> list[torch.Generator]:
        return [torch.Generator().manual_seed(k) for k in (3, 4)]

    together = pipeline(num_inference_steps=2, generator=generators(), output_type="latent")
    for k, generator in enumerate(generators()):
        alone = pipeline(num_inference_steps=2, generator=generator, output_type="latent")
        assert alone.seeds == together.seeds[k : k + 1]
        torch.testing.assert_close(alone.frames, together.frames[k : k + 1], atol=1e-4, rtol=1e-4)
    (frames, seeds) = pipeline(num_inference_steps=1, seeds=5, size=32, return_dict=False)
    assert (frames.shape, seeds) == ((1, 8, 32, 32, 3), [5])


def test_a_callback_can_change_latents(pipeline: MedSoraPipeline) -> None:
    seen = []

    def halve(pipe: MedSoraPipeline, step: int, t: int, values: dict) -> dict:
        seen.append((pipe is pipeline, step, t, pipe.num_timesteps))
        return {"latents": values["latents"] / 2} if step == STEPS - 1 else values

    found = latents(pipeline, callback_on_step_end=halve)
    assert seen == [(True, k, t, STEPS) for k, t in enumerate((999, 749, 499, 249))]
    torch.testing.assert_close(found, latents(pipeline) / 2)
    assert torch.equal(latents(pipeline, callback_on_step_end=lambda *_: None), latents(pipeline))
    empty = []
    latents(
        pipeline,
        callback_on_step_end=lambda *given: empty.append(given[3]) or {},
        callback_on_step_end_tensor_inputs=[],
    )
    assert empty == [{}] * STEPS
    with pytest.raises(BadInput, match="must return latents of shape"):
        latents(pipeline, callback_on_step_end=lambda *_: {"latents": torch.zeros(1)})


def test_a_callback_can_interrupt(pipeline: MedSoraPipeline) -> None:
    states = []

    def stop(pipe: MedSoraPipeline, step: int, t: int, values: dict) -> dict:
        states.append(values["latents"])
        pipe._interrupt = step == 1
        return values

    out = pipeline(
        seeds=[1, 2, 3], num_inference_steps=4, batch_size=2, output_type="latent", callback_on_step_end=stop
    )
    assert len(states) == 2
    assert torch.equal(out.frames, states[-1])
    assert out.seeds == [1, 2]
    assert len(latents(pipeline, seeds=[1, 2, 3])) == 3  # the next call is a new one


def test_an_interrupted_film_ends_with_its_window() -> None:
    pipeline = MedSoraPipeline(tiny_denoiser(), tiny_vae(), **GEOMETRY | {"frames": 17}, given_frames=[9])
    pipeline.set_progress_bar_config(disable=True)
    windows = []

    def stop(pipe: MedSoraPipeline, step: int, t: int, values: dict) -> dict:
        windows.append(step)
        pipe._interrupt = len(windows) == 3
        return values

    options = {"frames": 33, "window": 17, "num_inference_steps": 1, "batch_size": 1, "seeds": [1, 2]}
    assert pipeline(**options).frames.shape[:2] == (2, 33)
    out = pipeline(**options, callback_on_step_end=stop)
    assert (out.frames.shape[1], out.seeds, len(windows)) == (33, [1], 3)
    windows.clear()
    out = pipeline(**options | {"frames": 41}, callback_on_step_end=stop)
    assert (out.frames.shape[1], out.seeds) == (33, [1])


def test_guidance_scale_is_guidance_and_a_callback_may_change_it() -> None:
    pipeline = MedSoraPipeline(tiny_denoiser(classes=1), tiny_vae(), **GEOMETRY, labels=["polyp"])
    pipeline.set_progress_bar_config(disable=True)
    strong = latents(pipeline, label="polyp", guidance_scale=3.0)
    assert torch.equal(strong, latents(pipeline, label="polyp", guidance=3.0))

    def cut_off(pipe: MedSoraPipeline, step: int, t: int, values: dict) -> dict:
        assert pipe.guidance_scale == (3.0 if step == 0 else 1.0)
        pipe._guidance_scale = 1.0
        return values

    changed = latents(pipeline, label="polyp", guidance_scale=3.0, callback_on_step_end=cut_off)
    assert not torch.allclose(changed, strong)
    assert not torch.allclose(changed, latents(pipeline, label="polyp"))


def test_every_output_type_shows_the_same_video(pipeline: MedSoraPipeline, tmp_path: Path) -> None:
    def frames(output_type: str) -> Any:
        return pipeline(seeds=[1, 2], num_inference_steps=2, output_type=output_type).frames

    levels, unit, tensor, pictures = (frames(kind) for kind in ("uint8", "np", "pt", "pil"))
    assert (levels.shape, levels.dtype) == ((2, 8, 32, 16, 3), np.uint8)
    assert (unit.shape, unit.dtype) == ((2, 8, 32, 16, 3), np.float32)
    assert (tensor.shape, tensor.dtype) == ((2, 8, 3, 32, 16), torch.float32)
    assert 0 <= unit.min() < unit.max() <= 1
    assert np.array_equal(unit, tensor.movedim(2, -1).numpy())
    assert np.array_equal((unit * 255).round().astype(np.uint8), levels)
    assert [len(video) for video in pictures] == [8, 8]
    assert all(np.array_equal(np.asarray(f), g) for f, g in zip(pictures[1], levels[1], strict=True))
    assert pipeline(seeds=[1], num_inference_steps=2).frames.dtype == np.float32
    expected = VideoProcessor().postprocess_video(2 * tensor.movedim(1, 2) - 1, output_type="np")
    np.testing.assert_allclose(unit, expected, atol=1e-6)


def test_export_to_video_writes_what_was_sampled(pipeline: MedSoraPipeline, tmp_path: Path) -> None:
    options = {"seeds": [1], "num_inference_steps": 2}
    export_to_video(list(pipeline(**options).frames[0]), str(tmp_path / "np.mp4"), fps=8)
    export_to_video(pipeline(**options, output_type="pil").frames[0], str(tmp_path / "pil.mp4"), fps=8)
    one, other = (read_frames(tmp_path / f"{name}.mp4").astype(int) for name in ("np", "pil"))
    assert np.abs(one - other).mean() < 3


# What is not finite


@pytest.mark.parametrize("value", [torch.nan, torch.inf, -torch.inf])
@pytest.mark.parametrize("output_type", ["np", "uint8", "latent"])
def test_latents_that_are_not_finite_end_in_one_sentence(
    pipeline: MedSoraPipeline, value: float, output_type: str
) -> None:
    def spoil(pipe: MedSoraPipeline, step: int, t: int, values: dict) -> dict:
        values["latents"][1, 0, 0, 0, 0] = value
        return values

    with pytest.raises(NonFiniteVideo, match=r"latents of seed 8 are NaN or infinite, .* float32") as caught:
        latents(pipeline, seeds=[7, 8], output_type=output_type, callback_on_step_end=spoil)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("factor", [torch.nan, torch.inf])
def test_frames_that_are_not_finite_end_in_one_sentence(pipeline: MedSoraPipeline, factor: float) -> None:
    """Infinite pixels would be clamped to black or white."""
    pipeline.vae.base.decoder.conv_out.conv.bias.data.fill_(factor)
    with pytest.raises(NonFiniteVideo, match="frames of seed 5 are NaN or infinite"):
        latents(pipeline, output_type="np")
    assert latents(pipeline).isfinite().all()


def test_half_precision_that_overflows_is_named(pipeline: MedSoraPipeline) -> None:
    pipeline.vae.to(torch.float16)
    resnet = pipeline.vae.base.decoder.mid_block.resnets[0]
    resnet.conv1.conv.bias.data.fill_(6e4)
    resnet.conv1.conv.weight.data.mul_(1e4)
    with pytest.raises(NonFiniteVideo, match="computed in float16; take vae_dtype bf16 or fp32"):
        latents(pipeline, output_type="uint8")
