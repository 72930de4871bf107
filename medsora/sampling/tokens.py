"""EndoGen's pipeline: codes written one after another by the transformer, decoded as a grid of frames."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from numbers import Integral, Real
from typing import Any, ClassVar, Self

import torch
from diffusers import DiffusionPipeline

from medsora.baselines.endogen import EndoGen
from medsora.baselines.endogen.generate import generate
from medsora.baselines.endogen.grid import grid_shape, grid_to_frames
from medsora.errors import BadInput
from medsora.sampling.arguments import check_numbers, choose_seeds
from medsora.sampling.conditions import check_guidance, label_numbers
from medsora.sampling.pipeline import (
    MedSoraPipelineOutput,
    converted,
    evaluating,
    join_videos,
    require_finite,
)
from medsora.saved.card import ModelCard
from medsora.saved.classes import TOKENIZERS, TRANSFORMERS
from medsora.saved.find import DEFAULT_FPS, TRAINED_ON, ModelFolder
from medsora.saved.pipeline import SavedPipeline, load_parts

DEFAULT_TOP_K = 2000
OUTPUT_TYPES = ("np", "uint8", "pt", "codes")


class EndoGenPipeline(SavedPipeline):
    """EndoGen's transformer and tokenizer, and the clip that they were trained on.

    Args:
        transformer: an `EndoGen` for as many codes as the tokenizer has.
        tokenizer: a `VQTokenizer`, which codes the grid's picture.
        frames, size, fps, interval, rate, crop, labels: as in `SavedPipeline`.

    Raises:
        BadInput: if the parts, the clip and the labels do not fit together.
    """

    _optional_components: ClassVar = []
    _described: ClassVar = ("frames", "size", "fps", *TRAINED_ON, "labels")

    def __init__(
        self,
        transformer: EndoGen,
        tokenizer: Any,
        *,
        frames: int = 16,
        size: list[int] | tuple[int, ...] = (128, 128),
        fps: int | float = DEFAULT_FPS,
        interval: int | None = None,
        rate: float | None = None,
        crop: str | Sequence[float] | None = None,
        labels: list[str] | tuple[str, ...] = (),
    ) -> None:
        DiffusionPipeline.__init__(self)
        of = transformer.config
        if not tokenizer.config.quantize:
            raise BadInput(
                "the tokenizer was trained without quantisation (vae.quantize) and has no codes; take the "
                "one that the transformer was trained with."
            )
        grid = code_grid(frames, size, tokenizer.downsampling)
        if (of.num_codes, of.rows, of.cols) != (tokenizer.num_codes, *grid):
            raise BadInput(
                f"the transformer writes {of.rows}x{of.cols} of {of.num_codes} codes, but the clip has "
                f"{grid[0]}x{grid[1]} of the tokenizer's {tokenizer.num_codes}; save or copy the model again."
            )
        if of.classes != len(labels) or not all(isinstance(n, str) and n.isprintable() for n in labels):
            raise BadInput(
                f"the transformer was trained with {of.classes} labels, which need as many printable names, "
                f"not {list(labels)}; save or copy the model again."
            )
        self.register_modules(transformer=transformer, tokenizer=tokenizer)
        self.register_to_config(
            frames=int(frames),
            size=[int(side) for side in size],
            fps=fps if isinstance(fps, int) else float(fps),
            interval=interval,
            rate=rate,
            crop=crop,
            labels=list(labels),
        )

    @classmethod
    def from_folder(
        cls,
        folder: ModelFolder,
        *,
        dtype: str | torch.dtype = torch.float32,
        vae_dtype: str | torch.dtype | None = None,
    ) -> Self:
        """Load what `medsora.saved.find` found; `vae_dtype` is the tokenizer's, `dtype` unless given."""
        parts = load_parts(folder, TRANSFORMERS, TOKENIZERS, dtype, vae_dtype)
        clip = {key: value for key, value in folder.geometry.items() if key in cls._described}
        return cls(*parts, **clip)

    @torch.no_grad()
    def __call__(
        self,
        num_videos: int | None = None,
        *,
        generator: torch.Generator | Sequence[torch.Generator] | None = None,
        seeds: int | Sequence[int] | None = None,
        batch_size: int = 8,
        label: str | Sequence[str] | None = None,
        guidance: float = 1.0,
        temperature: float = 1.0,
        top_k: int = DEFAULT_TOP_K,
        top_p: float = 1.0,
        output_type: str = "np",
        callback: Callable[[int], None] | None = None,
    ) -> MedSoraPipelineOutput:
        """Sample videos.

        Args:
            num_videos, generator, seeds, batch_size, label: as in `MedSoraPipeline`.
            guidance, temperature, top_k, top_p: as in `generate`; a guidance scale above 1 doubles the cost.
            output_type: "np", "uint8" or "pt" as in `MedSoraPipelineOutput`, or "codes": (N, rows, cols).
            callback: called with the number of each code of every batch.

        Raises:
            BadInput: for a value outside what is named here.
            NonFiniteVideo: if logits or frames are NaN or infinite.
        """
        seeds = choose_seeds(num_videos, seeds, generator)
        numbers = label_numbers(label, self.labels, len(seeds)) or [len(self.labels)] * len(seeds)
        check_numbers(Real, guidance=guidance, temperature=temperature, top_p=top_p)
        check_numbers(Integral, top_k=top_k, batch_size=batch_size)
        check_guidance(guidance, label)
        check_draws(temperature, top_k, top_p)
        if batch_size < 1:
            raise BadInput(f"the batch size must be at least 1, not {batch_size}.")
        if output_type not in OUTPUT_TYPES:
            raise BadInput(f"there is no output type {output_type!r}; choose {', '.join(OUTPUT_TYPES)}.")
        rows, cols = grid_shape(self.config.frames)
        of, videos = self.transformer.config, []
        with evaluating(self.transformer, self.tokenizer):
            for start in range(0, len(seeds), batch_size):
                batch = slice(start, start + batch_size)
                codes = generate(
                    self.transformer,
                    numbers[batch],
                    [torch.Generator().manual_seed(seed) for seed in seeds[batch]],
                    guidance=guidance,
                    temperature=temperature,
                    top_k=top_k,
                    top_p=top_p,
                    after_code=callback,
                ).unflatten(1, (of.rows, of.cols))
                if output_type == "codes":
                    videos.append(codes)
                    continue
                pictures = self.tokenizer.decode(codes.to(self.tokenizer.device)).float()
                video = grid_to_frames(pictures.clamp(-1, 1), rows, cols)
                require_finite("frames", video, seeds[batch], self.tokenizer.dtype)
                videos.append(converted(video, output_type))
        return MedSoraPipelineOutput(frames=join_videos(videos, 0), seeds=seeds)

    def card(self, **facts: Any) -> ModelCard:
        """Return the model card with the pipeline's own facts, and `facts` (fields of `ModelCard`)."""
        preset = self.transformer.preset or "custom"
        parameters = self.transformer.num_parameters()
        of_tokenizer = sum(parameter.numel() for parameter in self.tokenizer.parameters())
        known = {
            "name": f"EndoGen-{preset}",
            "model": "EndoGen",
            "preset": preset,
            "parameters": parameters,
            "vae_parameters": of_tokenizer,
            "geometry": {key: self.config[key] for key in self._described},
            "summary": f"An autoregressive video model (EndoGen, preset {preset}) with {parameters:,} "
            f"parameters in the transformer and {of_tokenizer:,} in the tokenizer. Code by code it writes",
            "pipeline": "from medsora.sampling.tokens import EndoGenPipeline",
            "method": "autoregressive",
        }
        return ModelCard(**known | facts)


def code_grid(frames: int, size: Sequence[int], downsampling: int) -> tuple[int, int]:
    """Return the rows and columns of codes of a clip's grid. Raises `BadInput` if sides do not divide."""
    rows, cols = grid_shape(frames)
    height, width = size
    if min(height, width) < 1 or height % downsampling or width % downsampling:
        raise BadInput(
            f"clips of {height}x{width} pixels do not divide into the tokenizer's codes of {downsampling} "
            f"pixels; choose sides divisible by {downsampling} (data.size)."
        )
    return rows * height // downsampling, cols * width // downsampling


def check_draws(temperature: float, top_k: int, top_p: float) -> None:
    """Raise `BadInput` for a temperature, top-k or top-p outside its range."""
    if not 0 <= temperature <= 100:
        raise BadInput(f"the temperature must lie between 0 and 100, not {temperature}.")
    if top_k < 0:
        raise BadInput(f"top-k must be 0 (all codes) or more, not {top_k}.")
    if not 0 < top_p <= 1:
        raise BadInput(f"top-p must be above 0 and at most 1, not {top_p}.")
