"""YAML file -> checked `Config`, or one sentence that names the file or key and says what to do."""

from __future__ import annotations

import dataclasses
import difflib
from pathlib import Path
from typing import Any, get_args, get_type_hints

from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from medsora.config import Config, PhaseConfig
from medsora.errors import BadInput

_CHOICES = {
    "images.encoding": ("packed", "single"),
    "denoiser.preset": ("S", "B", "L", "XL", "tiny"),
    "denoiser.mixing": ("isolated", "mixed"),
    "denoiser.backend": ("auto", "reference", "torch", "triton", "mamba_ssm"),
    "flow.estimator": ("raft_large", "raft_small", "dis", "exact"),
    "alignment.correlation": ("sample", "batch"),
    "alignment.averaging": ("aligned", "uniform"),
    "train_vae.train": ("compensation", "all"),
    "train_vae.lr_decay": ("none", "cosine"),
    "train_dit.lr_decay": ("none", "cosine"),
    "train_vae.precision": ("no", "bf16", "fp16"),
    "train_dit.precision": ("no", "bf16", "fp16"),
    "train_dit.matmul": ("highest", "high", "medium"),
    "cache.latents": ("off", "disk"),
    "cache.prior": ("off", "disk"),
}

_POSITIVE = (
    "data.frames",
    "data.interval",
    "phantom.videos",
    "phantom.frames",
    "train_vae.batch",
    "train_dit.velocity_weight_cap",
    "train_vae.accumulation",
    "train_vae.epochs",
    "train_vae.lr",
    "train_vae.latent_std",
    "train_vae.eval_every",
    "train_vae.eval_clips",
    "train_vae.save_every",
    "train_vae.keep",
    "train_vae.log_every",
    "train_dit.accumulation",
    "train_dit.epochs",
    "train_dit.clip_norm",
    "train_dit.sample_every",
    "train_dit.sample_videos",
    "train_dit.eval_every",
    "train_dit.eval_clips",
    "train_dit.save_every",
    "train_dit.keep",
    "train_dit.log_every",
    "train_dit.sample_steps",
    "cache.image_groups",
)

_POSITIVE_OR_NULL = (
    "data.clip_stride",
    "train_vae.max_steps",
    "train_vae.clip_norm",
    "train_vae.keep_every",
    "train_dit.max_steps",
    "train_dit.keep_every",
)

_AT_LEAST_0 = (
    "run.seed",
    "data.workers",
    "alignment.weight",
    "alignment.margin",
    "train_vae.warmup_steps",
    "train_vae.l1",
    "train_vae.lpips",
    "train_vae.ffl",
    "train_vae.kl",
    "train_dit.warmup_steps",
    "train_dit.clip_from_epoch",
    "train_dit.weight_decay",
)

DIFFUSION_STEPS = 1000


def load_config(path: str | Path, overrides: list[str] | None = None) -> Config:
    """Read `path`, apply `key=value` overrides and return a checked `Config`.

    Raises `BadInput` with one sentence that names the file or key: a missing file, broken YAML, an unknown
    key (with the nearest known one), a value of the wrong type, or a value outside its range.
    """
    path = Path(path)
    if not path.is_file():
        raise BadInput(f"there is no config file {path}; configs/ holds those that come with MedSora.")
    try:
        given = OmegaConf.load(path)
        if not isinstance(given, DictConfig):
            raise BadInput(
                f"{path} must hold sections such as 'data:' and 'vae:', not {type(given).__name__}."
            )
        for override in overrides or []:
            if "=" not in override:
                raise BadInput(f"'{override}' is no override; write key=value, for example data.size=64.")
        given = OmegaConf.merge(given, OmegaConf.from_dotlist(list(overrides or [])))
        plain = OmegaConf.to_container(given, resolve=False)
    except BadInput:
        raise
    except Exception as error:  # OmegaConf passes on the YAML library's many error types
        raise BadInput(f"{path} cannot be read as YAML: {str(error).splitlines()[0]}.") from error
    return config_from_dict(plain, str(path))


def config_from_dict(values: dict[str, Any], source: str) -> Config:
    """Return the checked `Config` of nested plain `values`; `source` names them in errors."""
    _refuse_unknown_keys(values, Config, "", source)
    try:
        config = OmegaConf.to_object(OmegaConf.merge(OmegaConf.structured(Config), OmegaConf.create(values)))
    except OmegaConfBaseException as error:
        key = getattr(error, "full_key", None) or "a key"
        raise BadInput(
            f"{source}: {key} has a value that does not fit: {str(error).splitlines()[0]}."
        ) from error
    _check_values(config, source)
    return config


def config_to_dict(config: Config) -> dict[str, Any]:
    """Return nested plain values, such that `config_from_dict` gives the same config back."""
    return dataclasses.asdict(config)


def save_config(config: Config, path: Path) -> None:
    """Write the whole config, defaults included, as YAML."""
    path.write_text(OmegaConf.to_yaml(OmegaConf.create(config_to_dict(config))), encoding="utf-8")


def _refuse_unknown_keys(values: Any, schema: type, prefix: str, source: str) -> None:
    if not isinstance(values, dict):
        return
    known = get_type_hints(schema)
    for key, value in values.items():
        name = f"{prefix}{key}"
        if key not in known:
            near = difflib.get_close_matches(str(key), known, n=1, cutoff=0.0)
            raise BadInput(f"{source}: there is no key '{name}'; did you mean '{prefix}{near[0]}'?")
        inner = known[key]
        if dataclasses.is_dataclass(inner):
            if not isinstance(value, dict):
                raise BadInput(f"{source}: '{name}' is a section of keys, not the value {value!r}.")
            _refuse_unknown_keys(value, inner, f"{name}.", source)
        elif isinstance(value, list):
            for number, entry in enumerate(value):
                for part in get_args(inner):
                    if dataclasses.is_dataclass(part):
                        _refuse_unknown_keys(entry, part, f"{name}[{number}].", source)


def _value(config: Config, key: str) -> Any:
    section, name = key.split(".")
    return getattr(getattr(config, section), name)


def _check_values(config: Config, source: str) -> None:
    for key, choices in _CHOICES.items():
        if _value(config, key) not in choices:
            raise BadInput(
                f"{source}: {key} is '{_value(config, key)}' but must be one of {', '.join(choices)}."
            )
    for key in _POSITIVE:
        if not _value(config, key) > 0:
            raise BadInput(f"{source}: {key} is {_value(config, key)} but must be greater than 0.")
    for key in _POSITIVE_OR_NULL:
        value = _value(config, key)
        if value is not None and not value > 0:
            raise BadInput(f"{source}: {key} is {value} but must be greater than 0, or null.")
    for key in _AT_LEAST_0:
        if not _value(config, key) >= 0:
            raise BadInput(f"{source}: {key} is {_value(config, key)} but must be at least 0.")
    for key in ("train_vae.betas", "train_dit.betas"):
        betas = _value(config, key)
        if len(betas) != 2 or not all(0 <= beta < 1 for beta in betas):
            raise BadInput(f"{source}: {key} is {betas} but must be two numbers from 0 to below 1.")
    if not 0 <= config.train_dit.ema_decay < 1:
        raise BadInput(f"{source}: train_dit.ema_decay must be at least 0 and below 1.")
    if config.train_dit.sample_steps > DIFFUSION_STEPS:
        raise BadInput(
            f"{source}: train_dit.sample_steps is {config.train_dit.sample_steps} but there are only "
            f"{DIFFUSION_STEPS} diffusion steps."
        )
    size = config.data.size
    sides = [size] if isinstance(size, int) else size
    whole = (
        isinstance(sides, list | tuple) and len(sides) in (1, 2) and all(isinstance(s, int) for s in sides)
    )
    if not whole or isinstance(size, bool):
        raise BadInput(
            f"{source}: data.size is {size!r} but must be one number of pixels or [height, width]."
        )
    _check_crop(config.data.crop, source)
    if not 0 <= config.data.holdout < 1:
        raise BadInput(
            f"{source}: data.holdout is {config.data.holdout} but must be at least 0 and less than 1."
        )
    if config.images.count < 0 or (config.images.encoding == "packed" and config.images.count % 8):
        raise BadInput(
            f"{source}: images.count is {config.images.count}, but packed images come in groups of 8; "
            "use a multiple of 8, 0, or images.encoding=single."
        )
    _check_phases(config.train_dit.phases, source)


def _check_crop(crop: Any, source: str) -> None:
    if crop in ("auto", "none"):
        return
    parts = crop if isinstance(crop, list | tuple) else ()
    numbers = len(parts) == 4 and all(isinstance(part, int | float) and 0 <= part < 1 for part in parts)
    if not numbers or parts[0] + parts[1] >= 0.95 or parts[2] + parts[3] >= 0.95:
        raise BadInput(
            f"{source}: data.crop is {crop!r} but must be auto, none, or four parts of the frame to cut off, "
            "[top, bottom, left, right], such as [0.1, 0.1, 0.25, 0]."
        )


def _check_phases(phases: list[PhaseConfig], source: str) -> None:
    if not phases or phases[-1].until_epoch is not None:
        raise BadInput(
            f"{source}: the last of train_dit.phases must leave until_epoch empty: it runs to the end."
        )
    before = 0
    for number, phase in enumerate(phases):
        name = f"train_dit.phases[{number}]"
        if phase.batch <= 0 or phase.lr <= 0:
            raise BadInput(f"{source}: {name} needs lr and batch greater than 0.")
        if number + 1 < len(phases):
            if phase.until_epoch is None or phase.until_epoch <= before:
                raise BadInput(f"{source}: {name}.until_epoch must be a whole number greater than {before}.")
            before = phase.until_epoch
