"""From noise to videos: the denoiser, the VAE and the sampler joined.

Video k starts from noise that its own seed draws on the CPU, so a seed gives the same video, up to rounding,
at any batch size and on any number of processes. Shapes: latents (B, n, C, h, w), videos (N, F, H, W, 3).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from numbers import Integral, Real
from typing import Any, ClassVar, NamedTuple

import numpy as np
import torch
from diffusers.callbacks import MultiPipelineCallbacks, PipelineCallback
from diffusers.utils import BaseOutput
from PIL import Image
from torch import Tensor, nn

from medsora.config import choices
from medsora.data.reading.pixels import frames_to_video, video_to_frames
from medsora.diffusion import CLEAN
from medsora.errors import BadInput, NonFiniteVideo, bad_input_from_errors
from medsora.sampler import Callback, learns_variance, noise_like, prepare_scheduler, sample
from medsora.sampling.arguments import check_numbers, choose_seeds, height_and_width
from medsora.sampling.compiled import compile_blocks
from medsora.sampling.conditions import check_first_frames, check_guidance, label_numbers, plan_film
from medsora.sampling.prepared import PreparedDenoiser
from medsora.saved.pipeline import SavedPipeline
from medsora.vae.layout import channels_last

OUTPUT_TYPES = ("np", "uint8", "pil", "pt", "latent")
StepEnd = Callable[["MedSoraPipeline", int, int, dict[str, Any]], dict[str, Any] | None]


@dataclass
class MedSoraPipelineOutput(BaseOutput):
    """Output of a call.

    Attributes:
        frames: depend on `output_type`. "np": float32 (N, F, H, W, 3) in [0, 1]; "uint8": uint8, of the same
            shape; "pil": N lists of F RGB pictures; "pt": float32 tensor (N, F, 3, H, W) in [0, 1] on the
            VAE's device; "latent": scaled latents (N, f, C, h, w), float32 on the denoiser's device.
        seeds: one per video.
    """

    frames: np.ndarray | Tensor | list[list[Image.Image]]
    seeds: list[int]


class MedSoraPipeline(SavedPipeline):
    """Pipeline from noise to videos: call it to sample; `SavedPipeline` describes, saves and loads it."""

    _prepared: PreparedDenoiser | None = None
    _callback_tensor_inputs: ClassVar = ["latents"]
    _interrupt = False
    _guidance_scale = 1.0
    _num_timesteps = 0

    @property
    def interrupt(self) -> bool:
        """Whether the call under way stops before its next step; a callback sets `pipe._interrupt`."""
        return self._interrupt

    @property
    def guidance_scale(self) -> float:
        """Guidance of the next step; a callback may set `pipe._guidance_scale`."""
        return self._guidance_scale

    @property
    def num_timesteps(self) -> int:
        """Steps per batch of the present call, or of the last one."""
        return self._num_timesteps

    @torch.no_grad()
    def __call__(
        self,
        num_videos: int | None = None,
        num_inference_steps: int = 250,
        *,
        generator: torch.Generator | Sequence[torch.Generator] | None = None,
        seeds: int | Sequence[int] | None = None,
        frames: int | None = None,
        size: int | Sequence[int] | None = None,
        sampler: str | None = None,
        eta: float = 0.0,
        batch_size: int = 8,
        compile: str = "auto",
        output_type: str = "np",
        return_dict: bool = True,
        callback: Callback | None = None,
        callback_on_step_end: StepEnd | PipelineCallback | MultiPipelineCallbacks | None = None,
        callback_on_step_end_tensor_inputs: Sequence[str] = ("latents",),
        label: str | Sequence[str] | None = None,
        guidance_scale: float | None = None,
        guidance: float | None = None,
        first_frames: np.ndarray | None = None,
        window: int | None = None,
    ) -> MedSoraPipelineOutput | tuple:
        """Sample videos.

        Args:
            num_videos: N; default: one per seed or listed generator, or one.
            num_inference_steps: 1 to 1000; the paper takes 250.
            generator: draws the seeds if none are given; default: torch's global one. A list has one per
                video, and each video is that of a call with its generator alone.
            seeds: one per video.
            frames, size: F and (H, W) in pixels, or one number for both, if other than those trained on.
            sampler: "ddim", "dpmpp" (DPM-Solver++, 20 to 50 steps), "unipc" (UniPC, 8 to 30 steps), or "ddpm"
                (ancestral, learned variance), over the noise schedule of `scheduler`; default: `scheduler`,
                which is DDIM unless set.
            eta: DDIM's η; 0 is deterministic, 1 as random as ancestral sampling.
            batch_size: how many videos are denoised together; a matter of memory and speed only.
            compile: "auto" records a step as a CUDA graph on a GPU, which takes a second; "on" also compiles
                the denoiser's blocks, a minute that pays from some hundred steps on, on a CPU as well; "off"
                does neither.
            output_type: one of `OUTPUT_TYPES`; `MedSoraPipelineOutput` gives their shapes and ranges.
            return_dict: False returns the tuple (frames, seeds).
            callback: called with step, timestep and latents after every step of every batch.
            callback_on_step_end: called too, with the pipeline, step, timestep and a dict of the latents,
                joint images included; the latents of the dict that it returns take their place. It may set
                `pipe._guidance_scale`, and `pipe._interrupt = True`, which ends the call: latents are decoded
                as they are, batches not begun are left out, and films end with the window under way.
            callback_on_step_end_tensor_inputs: what the dict holds: "latents", or nothing.
            label: one of `labels` for all videos, or one per video; default: unconditional.
            guidance_scale: classifier-free guidance scale; 1, the default, disables it, 2-4 is typical and
                doubles the cost. `guidance` is its older name.
            first_frames: uint8 (g, H, W, 3) for all videos, or (N, g, H, W, 3), with which the videos begin;
                other sizes are fitted. g is one of the config's `given_frames`.
            window: makes a film of any length in windows of so many frames, each begun with the last ones of
                the window before it; default: all `frames` in one piece.

        Raises:
            BadInput: for a value outside what is named here; for a clip size that the VAE cannot return it
                names the next valid ones.
            NonFiniteVideo: if latents or frames are NaN or infinite.
        """
        seeds = choose_seeds(num_videos, seeds, generator)
        size = height_and_width(self.config.size if size is None else size)
        whole = {"num_inference_steps": num_inference_steps, "frames": frames, "window": window}
        check_numbers(
            Integral, "frames", "window", **whole, height=size[0], width=size[1], batch_size=batch_size
        )
        scales = {"guidance_scale": guidance_scale, "guidance": guidance}
        check_numbers(Real, *scales, **scales, eta=eta)
        chunk, trained = self.vae.frames_per_chunk, self.config.given_frames
        film = plan_film(self.config.frames if frames is None else frames, window, trained, chunk)
        with bad_input_from_errors():
            shape = self.vae.latent_shape(film.window, *size)
        labels = label_numbers(label, self.labels, len(seeds))
        if None not in (guidance, guidance_scale) and guidance != guidance_scale:
            raise BadInput(
                f"guidance_scale is {guidance_scale} but guidance, its older name, {guidance}; give one."
            )
        given_scale = next(scale for scale in (guidance_scale, guidance, 1.0) if scale is not None)
        check_guidance(given_scale, label)
        first = check_first_frames(first_frames, trained, film.window, size, len(seeds), chunk)
        if batch_size < 1:
            raise BadInput(f"the batch size must be at least 1, not {batch_size}.")
        if compile not in choices.COMPILE:
            raise BadInput(f"compile must be one of {', '.join(choices.COMPILE)}, not {compile!r}.")
        if output_type not in OUTPUT_TYPES:
            raise BadInput(f"there is no output type {output_type!r}; choose {', '.join(OUTPUT_TYPES)}.")
        if output_type == "latent" and film.windows > 1:
            raise BadInput("a film made in windows has no latents of its own; take frames, or no window.")
        if isinstance(callback_on_step_end, PipelineCallback | MultiPipelineCallbacks):
            callback_on_step_end_tensor_inputs = callback_on_step_end.tensor_inputs
        if isinstance(callback_on_step_end_tensor_inputs, str):
            callback_on_step_end_tensor_inputs = [callback_on_step_end_tensor_inputs]
        unknown = set(callback_on_step_end_tensor_inputs) - set(self._callback_tensor_inputs)
        if unknown:
            raise BadInput(f"a callback can be given latents, not {', '.join(sorted(unknown))}.")
        steps = len(prepare_scheduler(self.scheduler, num_inference_steps, sampler).timesteps)
        self._interrupt, self._num_timesteps = False, steps
        batches = [slice(start, start + batch_size) for start in range(0, len(seeds), batch_size)]
        videos = []
        with (
            evaluating(self.denoiser, self.vae),
            self.progress_bar(total=len(batches) * steps * film.windows) as bar,
        ):

            def after_step(number: int, t: int, z: Tensor) -> Tensor | None:
                bar.update()
                if callback is not None:
                    callback(number, t, z)
                if callback_on_step_end is None:
                    return None
                values = {"latents": z} if "latents" in callback_on_step_end_tensor_inputs else {}
                return _latents_of(callback_on_step_end(self, number, t, values), z)

            used = sorted({*labels, len(self.labels)}) if labels else []
            options = _SamplingOptions(
                sampler, num_inference_steps, eta, compile, given_scale, used, after_step
            )
            for batch in batches:
                if self._interrupt:
                    break
                generators = [torch.Generator().manual_seed(seed) for seed in seeds[batch]]
                numbers = None if labels is None else labels[batch]
                begin = first if first is None or len(first) == 1 else first[batch]
                z = self._sample_latents(generators, shape, options, numbers, begin)
                require_finite("latents", z, seeds[batch], self.denoiser.dtype)
                if output_type == "latent":
                    videos.append(z)
                    continue
                video = self._decode(z, seeds[batch])
                parts, made = [converted(video, output_type)], video.shape[1]
                while made < film.frames and not self._interrupt:
                    begin = video_to_frames(video[:, -film.overlap :])
                    z = self._sample_latents(generators, shape, options, numbers, begin)
                    require_finite("latents", z, seeds[batch], self.denoiser.dtype)
                    video = self._decode(z, seeds[batch])
                    parts.append(converted(video[:, film.overlap :], output_type))
                    made += video.shape[1] - film.overlap
                videos.append(join_videos(parts, 1)[:, : film.frames])
        shortest = min(video.shape[1] for video in videos)  # an interrupted film's
        joined = join_videos([video[:, :shortest] for video in videos], 0)
        if output_type == "pil":
            joined = [[Image.fromarray(frame) for frame in video] for video in joined]
        out = MedSoraPipelineOutput(frames=joined, seeds=seeds[: len(joined)])
        return out if return_dict else out.to_tuple()

    def _sample_latents(
        self,
        generators: Sequence[torch.Generator],
        shape: tuple[int, int, int, int],
        options: _SamplingOptions,
        labels: Sequence[int] | None,
        first: np.ndarray | None,
    ) -> Tensor:
        """Scaled latents (B, f, C, h, w), float32: only the weights and what they compute are in `dtype`."""
        clip, none = shape[0], self.denoiser.config.classes
        images = self.config.image_latents if self.denoiser.config.get("mixing") == "mixed" else 0
        scheduler = prepare_scheduler(self.scheduler, options.steps, options.sampler)
        timesteps, of_latents, given = [int(t) for t in scheduler.timesteps], None, None
        if first is not None:
            given = self._encode(first)
            timesteps = [*timesteps, CLEAN]
        if labels is not None:  # joint images, which a mixed denoiser carries along, have none
            rows = [[label] * clip + [none] * images for label in labels] if images else labels
            of_latents = torch.tensor(rows, device=self.denoiser.device)
        prepared = self._prepare(
            timesteps, images, options.compile, options.labels, learns_variance(scheduler)
        )
        self._guidance_scale = options.guidance

        def predict(z: Tensor, t: Tensor, labels: Tensor | None) -> Tensor:
            return prepared(z.to(self.denoiser.dtype), t, labels).float()

        def denoise(z: Tensor, t: Tensor) -> Tensor:
            return guided(predict, z, t, of_latents, none, self._guidance_scale)

        like = torch.empty(len(generators), clip + images, *shape[1:], device=self.denoiser.device)
        z = sample(
            denoise,
            noise_like(like, generators),
            scheduler,
            eta=options.eta,
            generators=generators,
            callback=options.callback,
            interrupted=lambda: self._interrupt,
            given=given,
        )
        return z[:, :clip]

    def _prepare(
        self, timesteps: list[int], images: int, compile: str, labels: list[int], variance: bool
    ) -> PreparedDenoiser:
        """Prepare the denoiser for timesteps and labels, or give the last one that fits a new table."""
        if compile == "on" and compile_blocks(self.denoiser):
            self._prepared = None  # what it recorded is of the blocks as they were
        settings = {"num_images": images, "record": compile != "off", "labels": labels, "variance": variance}
        if self._prepared is not None and self._prepared.fits(self.denoiser, timesteps, **settings):
            self._prepared.tabulate()
        else:
            self._prepared = PreparedDenoiser(self.denoiser, timesteps, **settings)
        return self._prepared

    def _encode(self, frames: np.ndarray) -> Tensor:
        """First frames, uint8 (B, g, H, W, 3), to the scaled latents (B, k, C, h, w) that stand for them."""
        video = frames_to_video(frames).to(self.vae.device, self.vae.dtype)
        return self.vae.encode(video).to(self.denoiser.device, torch.float32)

    def _decode(self, z: Tensor, seeds: Sequence[int]) -> Tensor:
        """Latents to float32 videos (B, F, 3, H, W) in [-1, 1].

        The VAE decodes a few at a time, so memory is bounded. Raises `NonFiniteVideo`.
        """
        on_gpu = self.vae.device.type == "cuda"
        with channels_last(self.vae) if on_gpu else nullcontext():
            video = self.vae.decode(z.to(self.vae.device, self.vae.dtype)).float()
        require_finite("frames", video, seeds, self.vae.dtype)
        return video


class _SamplingOptions(NamedTuple):
    """Settings that all batches and windows of a call share."""

    sampler: str | None
    steps: int
    eta: float
    compile: str
    guidance: float
    labels: list[int]  # those of any of its videos, and the one for no label; empty if no video has a label
    callback: Callback


def guided(
    denoise: Callable[..., Tensor], z: Tensor, t: Tensor, labels: Tensor | None, no_label: int, scale: float
) -> Tensor:
    """Classifier-free guidance (Ho & Salimans, 2022): how strongly a sample follows its label.

    ε without the label + `scale` · (ε with it - ε without), both from one forward of twice the batch.

    Args:
        denoise: (z (B, n, C, h, w), t (B,) or (B, n), labels) -> ε, such as a `PreparedDenoiser`.
        labels: (B,) or (B, n), or None for what the model does without labels.
        no_label: the number that stands for no label.
        scale: 1 is the conditional model's own output, and one forward of B; 0 ignores the label.
    """
    if labels is not None and scale == 0:
        labels = torch.full_like(labels, no_label)
    if labels is None or scale in (0, 1):
        return denoise(z, t, labels)
    twice = torch.cat([labels, torch.full_like(labels, no_label)])
    with_label, without = denoise(torch.cat([z, z]), torch.cat([t, t]), twice).chunk(2)
    eps = without + scale * (with_label - without)
    return torch.cat((eps[:, : z.shape[1]], with_label[:, z.shape[1] :]), dim=1)  # a variance stays


def converted(video: Tensor, output_type: str) -> np.ndarray | Tensor:
    """Videos (B, F, 3, H, W) in [-1, 1] as an output type has them; pictures are arrays until the end."""
    if output_type in ("uint8", "pil"):
        return video_to_frames(video)
    unit = video.add(1).div_(2)
    return unit if output_type == "pt" else unit.movedim(-3, -1).contiguous().cpu().numpy()


def join_videos(parts: Sequence[np.ndarray | Tensor], axis: int) -> np.ndarray | Tensor:
    """Concatenate what `converted` returned."""
    return torch.cat(parts, axis) if isinstance(parts[0], Tensor) else np.concatenate(parts, axis)


def _latents_of(returned: dict[str, Any] | None, z: Tensor) -> Tensor | None:
    """The latents that a callback gave back in place of z, if any."""
    if not isinstance(returned, dict | None):
        raise BadInput(f"callback_on_step_end must return a dict of latents, or nothing, not {returned!r}.")
    latents = (returned or {}).get("latents")
    if latents is not None and (not isinstance(latents, Tensor) or latents.shape != z.shape):
        raise BadInput(f"callback_on_step_end must return latents of shape {tuple(z.shape)}, or none.")
    return latents


def require_finite(what: str, values: Tensor, seeds: Sequence[int], dtype: torch.dtype) -> None:
    """Raise `NonFiniteVideo`, naming the first of `seeds` whose `values` (B, ...) are not all finite."""
    finite = values.isfinite().flatten(1).all(1).tolist()
    if all(finite):
        return
    seed = seeds[finite.index(False)]
    advice = "check the model's weights and the scheduler's settings"
    if dtype == torch.float16:
        advice = f"take {'dtype' if what == 'latents' else 'vae_dtype'} bf16 or fp32, or " + advice
    name = str(dtype).removeprefix("torch.")
    raise NonFiniteVideo(f"the {what} of seed {seed} are NaN or infinite, computed in {name}; {advice}.")


@contextmanager
def evaluating(*models: nn.Module) -> Iterator[None]:
    """Switch to evaluation mode, without dropout; restore the mode of a model in training afterwards."""
    training = [model.training for model in models]
    for model in models:
        model.eval()
    try:
        yield
    finally:
        for model, mode in zip(models, training, strict=True):
            model.train(mode)
