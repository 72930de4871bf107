"""Parts of a trained model, and how they are saved, loaded and published: all but the sampling."""

from __future__ import annotations

import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any, ClassVar, Self

import torch
from diffusers import DiffusionPipeline, SchedulerMixin
from diffusers.schedulers.scheduling_utils import SCHEDULER_CONFIG_NAME
from torch import nn

from medsora.config import choices
from medsora.denoiser.base import Denoiser
from medsora.errors import BadInput
from medsora.runtime.digests import weights_digest
from medsora.runtime.files import obey_umask, write_json
from medsora.sampler import SCHEDULERS, check_scheduler, ddim_scheduler
from medsora.saved.card import CARD_NAME, ModelCard
from medsora.saved.classes import DENOISERS, VAES, class_of_part
from medsora.saved.find import (
    CONDITIONS,
    DEFAULT_FPS,
    GEOMETRY,
    MEDSORA,
    PARTS,
    TRAINED_ON,
    ModelFolder,
    find_in_run,
    find_model,
)
from medsora.saved.hub import upload_model
from medsora.saved.limits import (
    BUILDING_ERRORS,
    check_model,
    check_scheduler_settings,
    first_sentence,
    read_json_object,
    shown,
)
from medsora.saved.manifest import model_files, refuse_changed_part, write_manifest
from medsora.vae import VideoVAE

DTYPES = dict(zip(choices.DTYPES, (torch.float32, torch.bfloat16, torch.float16), strict=True))
UNSHARDED = "1000TB"


class SavedPipeline(DiffusionPipeline):
    """Denoiser, VAE and scheduler, and the clip that they were trained on.

    Args:
        denoiser, vae: with the same number of latent channels.
        scheduler: what samples; one of `medsora.sampler.SCHEDULERS` that predicts ε at whole timesteps.
            Default: MedSora's (`ddim_scheduler`). Another may be set later: `pipe.scheduler = ...`.
        frames, size: F and (H, W) in pixels of the clips trained on.
        fps: frames per second in which videos are written.
        image_latents: how many joint images the denoiser was trained with (§3.4). One with `mixing="mixed"`
            gets as many beside the clip's latents, which are dropped at the end.
        interval, rate, crop: how the training clips were read (`data.interval`, frames per second and
            `data.crop`), as far as it is known.
        labels: the names of the labels that the denoiser was trained with, in its order.
        given_frames: with how many given first frames it was trained.

    Raises:
        BadInput: if the latent channels or the number of labels differ, a label is no printable name, or the
            scheduler cannot sample.
    """

    _optional_components: ClassVar = ["scheduler"]
    _described: ClassVar = (*GEOMETRY, *TRAINED_ON, *CONDITIONS)  # the clip, in the config

    def __init__(
        self,
        denoiser: Denoiser,
        vae: VideoVAE,
        scheduler: SchedulerMixin | None = None,
        *,
        frames: int = 16,
        size: list[int] | tuple[int, ...] = (128, 128),
        fps: int | float = DEFAULT_FPS,
        image_latents: int = 0,
        interval: int | None = None,
        rate: float | None = None,
        crop: str | Sequence[float] | None = None,
        labels: list[str] | tuple[str, ...] = (),
        given_frames: list[int] | tuple[int, ...] = (),
    ) -> None:
        super().__init__()
        if denoiser.config.in_channels != vae.latent_channels:
            raise BadInput(
                f"the denoiser works on {denoiser.config.in_channels} latent channels but the VAE has "
                f"{vae.latent_channels}; take the VAE that the denoiser was trained with."
            )
        if denoiser.config.classes != len(labels):
            raise BadInput(
                f"the denoiser was trained with {denoiser.config.classes} labels, but the model names "
                f"{len(labels)}; save or copy the model again."
            )
        scheduler = ddim_scheduler(250) if scheduler is None else scheduler
        check_scheduler(scheduler)
        self.register_modules(denoiser=denoiser, vae=vae, scheduler=scheduler)
        for label in labels:
            if not isinstance(label, str) or not label.isprintable():
                raise BadInput(f"the label {label!r} must be a printable name.")
        self.register_to_config(
            frames=int(frames),
            size=[int(side) for side in size],
            fps=fps if isinstance(fps, int) else float(fps),
            image_latents=int(image_latents),
            interval=interval,
            rate=rate,
            crop=crop,
            labels=list(labels),
            given_frames=[int(count) for count in given_frames],
        )

    @classmethod
    def _get_signature_types(cls) -> dict[str, tuple[type, ...]]:
        # diffusers' from_pipe takes a part over only if its own class is named, not one it derives from
        homes = {"denoiser": Denoiser, "vae": VideoVAE}
        return super()._get_signature_types() | {
            name: (home, *home.__subclasses__()) for name, home in homes.items()
        }

    @property
    def labels(self) -> list[str]:
        """Labels of the model; empty if it was trained without labels."""
        return list(self.config.labels)

    @property
    def trained_on(self) -> dict[str, Any]:
        """Interval, rate and crop of the training clips, as far as they are known."""
        return {key: self.config[key] for key in TRAINED_ON if self.config.get(key) is not None}

    @property
    def components(self) -> dict[str, Any]:
        """The modules and the clip: all that `MedSoraPipeline(**pipe.components)` needs to be the same."""
        return super().components | {key: self.config[key] for key in self._described}

    def enable_model_cpu_offload(self, *_: Any, **__: Any) -> None:
        """Raise `BadInput`: the parts stay where they are put."""
        raise BadInput("offloading is not supported; take dtype bf16 or a smaller batch_size instead.")

    enable_sequential_cpu_offload = enable_model_cpu_offload

    def save_pretrained(
        self, save_directory: str | Path, safe_serialization: bool = True, **options: Any
    ) -> None:
        """Save as `DiffusionPipeline` does, but without the paths of this machine that it writes down.

        Always complete safetensors files, which are all that `from_pretrained` reads. Raises `BadInput` for
        other `options` than defaults, and for a scheduler that cannot sample.
        """
        extra = [key for key, value in options.items() if value]
        extra += [] if safe_serialization else ["safe_serialization=False"]
        if "push_to_hub" in extra:
            raise BadInput("save_pretrained does not upload; call push_to_hub(OWNER/NAME) instead.")
        if extra:
            raise BadInput(
                f"save_pretrained cannot take {', '.join(extra)}: a model is saved as one safetensors "
                "file, the only kind that is loaded; leave that out."
            )
        if Path(save_directory).is_file():
            raise BadInput(f"{save_directory} is a file; give a folder.")
        if "scheduler" in self.components:
            check_scheduler(self.scheduler)
        super().save_pretrained(save_directory, max_shard_size=UNSHARDED)
        for path in Path(save_directory).rglob("*.json"):
            values = read_json_object(path)
            if values.pop("_name_or_path", None) is not None:
                write_json(path, values, indent=2, sort_keys=True)
        for path in Path(save_directory).rglob("*.safetensors"):
            obey_umask(path)
        write_manifest(Path(save_directory), model_files(Path(save_directory)))

    @classmethod
    def from_pretrained(
        cls,
        path: str | Path,
        *,
        dtype: str | torch.dtype | None = None,
        vae_dtype: str | torch.dtype | None = None,
        torch_dtype: str | torch.dtype | None = None,
        **options: Any,
    ) -> Self:
        """Load a saved pipeline, a shipped model, a run (its EMA) or a hub name, strictly, in `dtype`.

        `dtype` (default: float32; `torch_dtype` is its older name) is a `torch.dtype` or a word: "float16" or
        "fp16", "bfloat16" or "bf16", "float32" or "fp32". `vae_dtype` is the VAE's, `dtype` unless given:
        bfloat16 decodes faster on a GPU.

        Raises `BadInput`, naming the file, if one is missing, damaged or belongs to another model, and for
        `options`, diffusers' other ones, unless they are defaults.
        """
        usual = {"use_safetensors": (True, None), "low_cpu_mem_usage": (True, False, None)}
        extra = [key for key, value in options.items() if value not in usual.get(key, (False, None))]
        if extra:
            raise BadInput(
                f"from_pretrained cannot take {', '.join(extra)}, only dtype (or torch_dtype) and vae_dtype; "
                "set another scheduler by pipe.scheduler, move the pipeline by pipe.to(device)."
            )
        if dtype is not None and torch_dtype is not None and _to_dtype(dtype) != _to_dtype(torch_dtype):
            raise BadInput(f"dtype is {dtype} but torch_dtype, its older name, {torch_dtype}; give one.")
        dtype = torch_dtype if dtype is None else dtype
        return cls.from_folder(find_model(path), dtype=dtype or torch.float32, vae_dtype=vae_dtype)

    @classmethod
    def from_run(
        cls, run: str | Path, *, raw: bool = False, checkpoint: str | int | None = None, **dtypes: Any
    ) -> Self:
        """Load a run folder's newest complete checkpoint, or the named one: EMA weights, or the raw ones.

        `dtypes` are `dtype` and `vae_dtype` of `from_folder`. Raises `BadInput` as `find_in_run` and
        `from_pretrained` do.
        """
        return cls.from_folder(find_in_run(run, raw=raw, checkpoint=checkpoint), **dtypes)

    @classmethod
    def from_folder(
        cls,
        folder: ModelFolder,
        *,
        dtype: str | torch.dtype = torch.float32,
        vae_dtype: str | torch.dtype | None = None,
    ) -> Self:
        """Load what `medsora.saved.find` found; `vae_dtype` is the VAE's, `dtype` unless given."""
        if folder.kind != MEDSORA:
            raise BadInput(
                f"{folder.denoiser.parent} is a model of {folder.kind}: load it by that class, or give a "
                "MedSora or Endora model."
            )
        denoiser, vae = load_parts(folder, DENOISERS, VAES, dtype, vae_dtype)
        scheduler = _load_scheduler(folder.scheduler) if folder.scheduler else None
        return cls(denoiser, vae, scheduler, **folder.geometry)

    def push_to_hub(
        self, repo_id: str, *, card: ModelCard | None = None, private: bool = False, token: str | None = None
    ) -> str:
        """Upload the model with its model card to OWNER/NAME on the hub; return its address.

        `card` is what `medsora.project.export` makes of a run, or `self.card(...)`, which it is by default.
        Raises `BadInput` with one sentence if the hub refuses.
        """
        with tempfile.TemporaryDirectory() as folder:
            self.save_pretrained(folder)
            page = (card or self.card(repo=repo_id)).markdown()
            Path(folder, CARD_NAME).write_text(page, encoding="utf-8")
            return upload_model(Path(folder), repo_id, private=private, token=token)

    def card(self, **facts: Any) -> ModelCard:
        """Return the model card with the pipeline's own facts, and `facts` (fields of `ModelCard`)."""
        model, preset = type(self.denoiser).__name__, self.denoiser.preset or "custom"
        known = {
            "name": f"{model}-{preset}",
            "model": model,
            "preset": preset,
            "parameters": self.denoiser.num_parameters(),
            "vae_parameters": self.vae.num_parameters(),
            "geometry": {key: self.config[key] for key in (*GEOMETRY, "labels")},
        }
        return ModelCard(**known | facts)


def _to_dtype(dtype: str | torch.dtype) -> torch.dtype:
    """Return float32, float16 or bfloat16 by that word, its short form or itself. Raises `BadInput`."""
    words = DTYPES | {str(known).removeprefix("torch."): known for known in DTYPES.values()}
    parsed = words.get(dtype) if isinstance(dtype, str) else dtype
    if parsed not in DTYPES.values():
        raise BadInput(f"dtype {dtype!r} is unknown; choose {', '.join(words)} or the torch.dtype.")
    return parsed


def load_parts(
    folder: ModelFolder,
    trained: dict[str, str],
    decoders: dict[str, str],
    dtype: str | torch.dtype,
    decoder_dtype: str | torch.dtype | None,
) -> tuple[nn.Module, nn.Module]:
    """Load both models of a pipeline, of classes in `trained` and `decoders`.

    `decoder_dtype` is `dtype` unless given. Raises `BadInput` if the second is not the one that the first
    was trained with.
    """
    model = _load_part(trained, folder.denoiser, _to_dtype(dtype))
    decoder_dtype = _to_dtype(decoder_dtype or dtype)
    exact = decoder_dtype if folder.vae_digest is None else torch.float32
    decoder = _load_part(decoders, folder.vae, exact)
    if folder.vae_digest is not None and weights_digest(decoder) != folder.vae_digest:
        first, second = PARTS[folder.kind]
        raise BadInput(
            f"{folder.vae} is not the {second.replace('vae', 'VAE')} that the {first} was trained with "
            "(damaged, or another); copy the run again, or resume its training, which writes it anew."
        )
    return model, decoder if decoder_dtype == exact else _load_part(decoders, folder.vae, decoder_dtype)


def _load_part(homes: dict[str, str], folder: Path, dtype: torch.dtype) -> nn.Module:
    kind = class_of_part(homes, read_json_object(folder / "config.json"), folder)
    check_model(folder, kind)
    try:
        return kind.from_pretrained(folder, torch_dtype=dtype, use_safetensors=True).eval()
    except BadInput:
        raise
    except BUILDING_ERRORS as error:
        raise BadInput(f"{folder} cannot be loaded as a {kind.__name__}: {first_sentence(error)}.") from error


def saved_sampler(folder: ModelFolder) -> tuple[str, dict[str, Any] | None]:
    """Return a model's sampler: "ddim" and None, or another scheduler's class and its settings.

    Raises `BadInput` as `from_folder` does.
    """
    usual = ddim_scheduler(250)
    scheduler = _load_scheduler(folder.scheduler) if folder.scheduler else usual
    check_scheduler(scheduler)
    settings, usual_settings = (
        {key: value for key, value in each.config.items() if not key.startswith("_")}
        for each in (scheduler, usual)
    )
    is_usual = type(scheduler) is type(usual) and settings == usual_settings
    return ("ddim", None) if is_usual else (type(scheduler).__name__, settings)


def _load_scheduler(folder: Path) -> SchedulerMixin:
    path = folder / SCHEDULER_CONFIG_NAME
    settings = read_json_object(path)
    name = settings.get("_class_name")
    if not isinstance(name, str) or name not in SCHEDULERS:
        known = ", ".join(SCHEDULERS)
        raise BadInput(f"{folder} holds {shown(name)}, which cannot sample here; there are {known}.")
    check_scheduler_settings(settings, SCHEDULERS[name], str(path))
    refuse_changed_part(folder)
    try:
        return SCHEDULERS[name].from_pretrained(folder)
    except BUILDING_ERRORS as error:
        raise BadInput(
            f"{folder} cannot be loaded as a {name}: {first_sentence(error)}; save or copy the model again."
        ) from error
