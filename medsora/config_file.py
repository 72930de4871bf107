"""YAML file -> checked `Config`, or one sentence that names the file or key and says what to do."""

from __future__ import annotations

import dataclasses
import difflib
import io
import math
import re
from pathlib import Path, PurePath
from typing import Any, get_args, get_type_hints

import yaml
from omegaconf import DictConfig, OmegaConf

from medsora.config import Config, PhaseConfig
from medsora.crop import checked_crop
from medsora.errors import BadInput
from medsora.presets import PRESETS
from vae.shapes import FRAMES_PER_CHUNK

_CHOICES = {
    "images.encoding": ("packed", "single"),
    "denoiser.preset": tuple(PRESETS),
    "denoiser.mixing": ("isolated", "mixed"),
    "denoiser.prediction": ("noise", "velocity"),
    "denoiser.backend": ("auto", "reference", "torch", "triton", "mamba_ssm"),
    "flow.estimator": ("raft_large", "raft_small", "dis", "exact"),
    "alignment.correlation": ("sample", "batch"),
    "alignment.averaging": ("aligned", "uniform"),
    "train_vae.train": ("compensation", "all"),
    "train_vae.lr_decay": ("none", "cosine"),
    "train_dit.lr_decay": ("none", "cosine"),
    "train_vae.precision": ("no", "bf16", "fp16"),
    "train_dit.precision": ("no", "bf16", "fp16"),
    "train_dit.error_of": ("noise", "velocity", "data"),
    "train_dit.matmul": ("highest", "high", "medium"),
    "cache.latents": ("off", "disk"),
    "cache.prior": ("off", "disk"),
}

_POSITIVE = (
    "data.frames",
    "data.interval",
    "phantom.videos",
    "phantom.frames",
    "phantom.polyp_size",
    "train_vae.batch",
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

_AT_MOST = {
    "data.frames": 4097,
    "data.interval": 10_000,
    "data.workers": 256,
    "images.count": 4096,
    "phantom.videos": 1_000_000,
    "phantom.frames": 100_000,
    "phantom.polyp_size": 2,
    "cache.image_groups": 1_000_000,
}
LARGEST_SIDE = 4096  # pixels

DIFFUSION_STEPS = 1000

# A config may come from a stranger: it names values, and writes nowhere but below the folder it is run from.
OUTPUTS = ("run.dir", "cache.dir", "phantom.folder")
RUN_NAME = re.compile(r"\w[\w .,+=@-]{0,99}")
MAX_BYTES, MAX_NODES, MAX_DEPTH = 1_000_000, 100_000, 20
LARGEST_NUMBER = 2**53


def load_config(
    path: str | Path, overrides: list[str] | None = None, *, outputs_anywhere: bool = False
) -> Config:
    """Read `path`, apply `key=value` overrides and return a checked `Config`.

    Unless `outputs_anywhere`, what the file names as `OUTPUTS` must lie below the present folder; overrides,
    which the user typed, may name any place.

    Raises `BadInput` with one sentence that names the file or key: a missing file, broken YAML, an unknown
    key (with the nearest known one), a value of the wrong type, or a value outside its range.
    """
    path = Path(path)
    if not path.is_file():
        raise BadInput(f"there is no config file {path}; configs/ holds those that come with MedSora.")
    try:
        given = OmegaConf.load(io.StringIO(_read_bounded(path)))
        if not isinstance(given, DictConfig):
            raise BadInput(
                f"{path} must hold sections such as 'data:' and 'vae:', not {type(given).__name__}."
            )
        if not outputs_anywhere:
            _check_outputs(OmegaConf.to_container(given, resolve=False), str(path))
        for override in overrides or []:
            if "=" not in override:
                raise BadInput(f"'{override}' is no override; write key=value, for example data.size=64.")
        given = OmegaConf.merge(given, OmegaConf.from_dotlist(list(overrides or [])))
        plain = OmegaConf.to_container(given, resolve=False)
    except BadInput:
        raise
    except Exception as error:  # OmegaConf passes on the YAML library's many error types
        reason = (str(error).splitlines() or [type(error).__name__])[0]
        raise BadInput(f"{path} cannot be read as YAML: {reason}.") from error
    return config_from_dict(plain, str(path))


def config_from_dict(values: dict[str, Any], source: str) -> Config:
    """Return the checked `Config` of nested plain `values`; `source` names them in errors."""
    _refuse_unknown_keys(values, Config, "", source)
    _refuse_odd_values(values, "", source)
    try:
        config = OmegaConf.to_object(OmegaConf.merge(OmegaConf.structured(Config), OmegaConf.create(values)))
    except Exception as error:  # of OmegaConf's own kind, and whatever else odd values set off inside it
        key = getattr(error, "full_key", None) or "a key"
        reason = (str(error).splitlines() or [type(error).__name__])[0]
        raise BadInput(f"{source}: {key} has a value that does not fit: {reason}.") from error
    _mend_switches(config)
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


def _read_bounded(path: Path) -> str:
    """Return the text of a YAML file whose values, aliases written out, are few enough to be a config."""
    if path.stat().st_size > MAX_BYTES:
        raise BadInput(f"{path} is larger than {MAX_BYTES} bytes: that is no config.")
    text = path.read_text(encoding="utf-8")
    sizes: dict[int, int] = {}  # of nodes, by identity: an alias is the very node that it stands for

    def written_out(node: yaml.Node | None, depth: int) -> int:
        if not isinstance(node, yaml.CollectionNode):
            return 1
        if depth > MAX_DEPTH:  # a node inside itself too
            raise BadInput(f"{path} is nested more than {MAX_DEPTH} deep: that is no config.")
        if id(node) not in sizes:
            parts = (
                node.value
                if isinstance(node, yaml.SequenceNode)
                else [n for pair in node.value for n in pair]
            )
            sizes[id(node)] = 1 + sum(written_out(part, depth + 1) for part in parts)
        return sizes[id(node)]

    if written_out(yaml.compose(text, Loader=yaml.SafeLoader), 0) > MAX_NODES:
        raise BadInput(f"{path} stands for more than {MAX_NODES} values: that is no config.")
    return text


def _check_outputs(values: Any, source: str) -> None:
    for key in OUTPUTS:
        section, name = key.split(".")
        inner = values.get(section)
        place = inner.get(name) if isinstance(inner, dict) else None
        if isinstance(place, str) and (PurePath(place).is_absolute() or ".." in PurePath(place).parts):
            raise BadInput(
                f"{source}: {key} is '{place}', but a config file writes only below the folder it is run "
                f"from; say {key}={place} on the command line if you mean it."
            )


def _refuse_odd_values(value: Any, name: str, source: str) -> None:
    """Refuse what no key can mean: interpolations (they read the environment), NaN, unprintable text."""
    if isinstance(value, dict | list):
        entries = value.items() if isinstance(value, dict) else enumerate(value)
        for key, inner in entries:
            _refuse_odd_values(inner, f"{name}.{key}" if name else str(key), source)
    elif isinstance(value, str) and ("${" in value or not value.isprintable()):
        raise BadInput(f"{source}: {name} is {value!r}, but values are plain text, written out in full.")
    elif isinstance(value, int | float) and (not math.isfinite(value) or abs(value) > LARGEST_NUMBER):
        raise BadInput(f"{source}: {name} is {value!s:.50}, which is no number to compute with.")


def _mend_switches(config: Config) -> None:
    """Put back the words off and no, which YAML reads as false."""
    for key, choices in _CHOICES.items():
        for word in {"off", "no"} & set(choices):
            if _value(config, key) == "False":
                section, name = key.split(".")
                setattr(getattr(config, section), name, word)


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
    for key, largest in _AT_MOST.items():
        if _value(config, key) > largest:
            raise BadInput(f"{source}: {key} is {_value(config, key)} but must be at most {largest}.")
    if not RUN_NAME.fullmatch(config.run.name):
        raise BadInput(
            f"{source}: run.name is {config.run.name!r} but must be one folder's name: a letter or digit "
            "first, no slashes; the place is run.dir."
        )
    for key, value in config.denoiser.overrides.items():
        if isinstance(value, int) and not isinstance(value, bool) and not 0 < value <= LARGEST_SIDE:
            raise BadInput(f"{source}: denoiser.overrides.{key} is {value} but must be 1 to {LARGEST_SIDE}.")
    for key in ("train_vae.betas", "train_dit.betas"):
        betas = _value(config, key)
        if len(betas) != 2 or not all(isinstance(beta, int | float) and 0 <= beta < 1 for beta in betas):
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
        isinstance(sides, list | tuple)
        and (isinstance(size, int) or len(sides) == 2)
        and all(isinstance(side, int) and side <= LARGEST_SIDE for side in sides)
    )
    if not whole or isinstance(size, bool):
        raise BadInput(
            f"{source}: data.size is {size!r} but must be one number of pixels or [height, width], "
            f"each at most {LARGEST_SIDE}."
        )
    checked_crop(config.data.crop, f"{source}: data.crop")
    _check_conditions(config, source)
    if not 0 <= config.data.holdout < 1:
        raise BadInput(
            f"{source}: data.holdout is {config.data.holdout} but must be at least 0 and less than 1."
        )
    images = config.images
    if images.count < 0 or (images.encoding == "packed" and images.count % FRAMES_PER_CHUNK):
        raise BadInput(
            f"{source}: images.count is {images.count}, but packed images come in groups of "
            f"{FRAMES_PER_CHUNK}; use a multiple of {FRAMES_PER_CHUNK}, 0, or images.encoding=single."
        )
    _check_phases(config.train_dit.phases, source)
    if config.cache.prior == "disk" and config.cache.latents != "disk":
        raise BadInput(
            f"{source}: cache.prior: disk keeps features of the windows that cache.latents: disk takes its "
            "clips from; set both, or none."
        )


def _check_conditions(config: Config, source: str) -> None:
    data, settings = config.data, config.train_dit
    if data.balance and data.labels == "none":
        raise BadInput(f"{source}: data.balance needs labels to balance; set data.labels (folders or a CSV).")
    for key in ("label_dropout", "first_frame_prob"):
        if not 0 <= getattr(settings, key) <= 1:
            raise BadInput(f"{source}: train_dit.{key} is {getattr(settings, key)} but must be 0 to 1.")
    if settings.first_frame_prob == 0:
        return
    if config.alignment.weight and config.alignment.correlation == "batch":
        raise BadInput(
            f"{source}: alignment.correlation batch takes every sample, but those with given frames are left "
            "out of the alignment (train_dit.first_frame_prob); use sample."
        )
    for frames in settings.given_frames or [0]:
        whole = type(frames) is int and 0 < frames < data.frames  # OmegaConf lets a list pass for a number
        if not whole or (data.frames - frames) % FRAMES_PER_CHUNK:
            raise BadInput(
                f"{source}: train_dit.given_frames is {settings.given_frames}, but of clips of {data.frames} "
                f"frames only {_givable(data.frames)} can be given: whole groups of latents."
            )


def _givable(frames: int) -> str:
    counts = [str(count) for count in range(1, frames) if (frames - count) % FRAMES_PER_CHUNK == 0]
    return " or ".join(counts) or "none (a frame of its own needs clips of 8k+1)"


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
