"""The VAE underneath, as diffusers ships it: CogVideoX's, or a 2-D one; by hub name, folder or config.

Every load is strict: a key too many, too few or of another shape is an error of one sentence.
"""

from __future__ import annotations

import difflib
import inspect
import json
import zlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any, ClassVar, Self

import torch
from diffusers import AutoencoderKLCogVideoX, ConfigMixin, ModelMixin
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from medsora.vae.shapes import FRAMES_PER_CHUNK, FRAMES_PER_LATENT, LATENTS_PER_CHUNK

CHECKSUM = "_crc32"  # key of the checksum in the JSON file of a base


class StrictModel(ModelMixin, ConfigMixin):
    """Base class of models around diffusers' own one, `self.base` of `base_class`; loads strictly."""

    base_class: ClassVar[type[ModelMixin]]
    _supports_gradient_checkpointing = True

    @classmethod
    def from_pretrained(cls, path: str | Path, **options: Any) -> Self:
        """A VAE or tokenizer that `save_pretrained` wrote, strictly: keys that do not fit are a `ValueError`.

        `options` are diffusers' own (`subfolder`, `torch_dtype`, ...); only safetensors are read, never
        pickles (`use_safetensors=False` is a `ValueError`). `OSError` where nothing can be read.
        """
        with_info = options.pop("output_loading_info", False)
        if options.pop("use_safetensors", True) is False:
            raise ValueError("use_safetensors is False, but pickles are never read; leave it out")
        try:
            vae, loading = super().from_pretrained(
                path, output_loading_info=True, use_safetensors=True, **options
            )
        except (OSError, RuntimeError, ValueError, SafetensorError) as error:
            reason = " ".join(str(error).split())[:300]
            raise OSError(f"{path}: no whole saved VAE there ({reason}); save it again") from error
        wrong = {kind: keys for kind, keys in loading.items() if keys}
        if wrong:
            kind, keys = next(iter(wrong.items()))
            raise ValueError(f"{path}: the weights do not fit config.json ({kind}: {next(iter(keys))!r})")
        return (vae, loading) if with_info else vae

    def base_settings(self) -> dict[str, Any]:
        """The settings of `base_class` that rebuild the base."""
        return dict(self.config.base_config)

    def base_state_dict(self) -> dict[str, Tensor]:
        """The base's own entries under diffusers' names."""
        return self.base.state_dict()

    def save_base(self, config: str | Path, weights: str | Path, dtype: torch.dtype = torch.float16) -> None:
        """Write the base alone, as `load_base(config, weights, base_class)` reads it again.

        `config` becomes a JSON file of `base_settings` and their checksum, `weights` a safetensors file in
        `dtype`.
        """
        settings = self.base_settings()
        Path(config).write_text(json.dumps(settings | {CHECKSUM: _checksum(settings)}, indent=2) + "\n")
        state = {name: value.detach().to("cpu", dtype) for name, value in self.base_state_dict().items()}
        save_file(state, weights, metadata={"format": "pt"})

    def _clamped(self, video: Tensor) -> Tensor:
        return video if self.training else video.clamp(-1, 1).where(video.isfinite(), torch.nan)


def load_base(
    base: str | Path | Mapping[str, Any],
    weights: str | Path | None = None,
    kind: type[ModelMixin] = AutoencoderKLCogVideoX,
) -> ModelMixin:
    """The base, of the class `kind`, in float32, on the CPU.

    `base`: a config (a mapping or a `.json` file: random weights unless `weights` is given), a local
    diffusers folder (the VAE's own or a pipeline's with the subfolder `vae`; a `FrequencyCompensatedVAE`
    without compensation is a base, too), or a hub name, which diffusers downloads.
    `weights`: a safetensors file with exactly the base's keys, in any floating-point type.

    Raises `ValueError` for a config or weights that do not fit, `OSError` where nothing could be loaded.
    """
    if isinstance(base, Mapping):
        model = base_from_config(base, "the given config", kind)
    elif str(base).endswith(".json"):
        model = base_from_config(_read_json(Path(base)), str(base), kind)
    elif Path(base).is_dir():
        model = _from_folder(Path(base), kind)
    else:
        model = _from_hub(str(base), kind)
    if weights is not None:
        load_weights(model, weights)
    return model


def base_from_config(
    config: Mapping[str, Any], source: str, kind: type[ModelMixin] = AutoencoderKLCogVideoX
) -> ModelMixin:
    """A randomly initialised base; `source` names the config in errors."""
    known = [name for name in inspect.signature(kind.__init__).parameters if name != "self"]
    chosen = {key: value for key, value in config.items() if not key.startswith("_")}
    for key in chosen:
        if key not in known:
            near = difflib.get_close_matches(key, known, n=1)
            hint = f"; did you mean {near[0]!r}?" if near else ""
            raise ValueError(f"{source}: {key!r} is no setting of {kind.__name__}{hint}")
    ratio = chosen.get("temporal_compression_ratio", FRAMES_PER_LATENT)
    if ratio != FRAMES_PER_LATENT:
        raise ValueError(
            f"{source}: temporal_compression_ratio is {ratio}, but AutoencoderKLCogVideoX works in chunks of "
            f"{FRAMES_PER_CHUNK} frames and {LATENTS_PER_CHUNK} latents; set it to {FRAMES_PER_LATENT}"
        )
    try:
        return kind(**chosen)
    except (ValueError, TypeError, IndexError) as error:
        raise ValueError(f"{source}: {kind.__name__} cannot be built from it: {error}") from error


def load_weights(model: nn.Module, path: str | Path, prefix: str = "") -> None:
    """Load a safetensors file into `model`, strictly, in the model's own floating-point type.

    `prefix` stands before every name in the file.
    """
    try:
        state = load_file(path)
    except FileNotFoundError as error:
        raise FileNotFoundError(f"{path}: no such weights file; give a safetensors file or none") from error
    except SafetensorError as error:
        raise ValueError(
            f"{path}: not a complete safetensors file ({error}); copy or export it again"
        ) from error
    state = {name.removeprefix(prefix): value for name, value in state.items()}
    _check_state(model, state, str(path))
    model.load_state_dict(state, strict=True)


def _check_state(model: nn.Module, state: Mapping[str, Tensor], source: str) -> None:
    """Raise an error that names the first mismatch in one sentence; torch would list them all."""
    expected = model.state_dict()
    missing = [key for key in expected if key not in state]
    unexpected = [key for key in state if key not in expected]
    if missing or unexpected:
        first = f"{missing[0]!r} is missing" if missing else f"{unexpected[0]!r} is unknown"
        raise ValueError(
            f"{source}: these weights belong to another architecture: {first} "
            f"({len(missing)} keys missing, {len(unexpected)} unknown); give the weights of this very config"
        )
    for key, value in expected.items():
        if state[key].shape != value.shape:
            raise ValueError(
                f"{source}: {key!r} has shape {tuple(state[key].shape)} where {tuple(value.shape)} is "
                "expected; give the weights of this very config"
            )


def _read_json(path: Path) -> dict[str, Any]:
    try:
        config = json.loads(path.read_text())
    except FileNotFoundError as error:
        raise FileNotFoundError(
            f"{path}: no such config; give a JSON file, a folder or a hub name"
        ) from error
    except json.JSONDecodeError as error:
        raise ValueError(f"{path}: not a JSON file ({error})") from error
    if not isinstance(config, dict):
        raise ValueError(f"{path}: expected a JSON object of a VAE's settings")
    if config.get(CHECKSUM) not in (None, _checksum(config)):
        raise ValueError(
            f"{path}: is damaged or was changed: it does not match its checksum; copy it again, or remove "
            f"its key {CHECKSUM} if the change was meant"
        )
    return config


def _checksum(settings: Mapping[str, Any]) -> int:
    rest = {key: value for key, value in settings.items() if key != CHECKSUM}
    return zlib.crc32(json.dumps(rest, sort_keys=True).encode())


def _from_folder(folder: Path, kind: type[ModelMixin]) -> ModelMixin:
    for subfolder in (None, "vae"):
        config = folder / (subfolder or "") / "config.json"
        if not config.is_file():
            continue
        settings = _read_json(config)
        if settings.get("_class_name") == kind.__name__:
            return _pretrained(str(folder), subfolder, kind)
        ours = settings.get("_class_name") == "FrequencyCompensatedVAE" and kind is AutoencoderKLCogVideoX
        if ours and settings.get("compensation") is False:
            bare = settings["base_config"]
            scale = settings.get("scaling_factor") or bare.get("scaling_factor")
            model = base_from_config(bare | {"scaling_factor": scale}, str(config), kind)
            load_weights(model, config.parent / "diffusion_pytorch_model.safetensors", prefix="base.")
            return model
        raise ValueError(
            f"{config}: holds a {settings.get('_class_name')}, not an {kind.__name__}; give the folder of a "
            "base, or load a compensated VAE by FrequencyCompensatedVAE.from_pretrained"
        )
    raise FileNotFoundError(
        f"{folder}: neither config.json nor vae/config.json in it; give a diffusers VAE's folder"
    )


def _from_hub(name: str, kind: type[ModelMixin]) -> ModelMixin:
    if name.count("/") != 1 or name.startswith((".", "/", "~")):
        raise FileNotFoundError(
            f"{name}: no such folder, and no hub name (OWNER/NAME) either; give a diffusers folder, "
            "a JSON config or a name such as THUDM/CogVideoX-2b"
        )
    try:
        return _pretrained(name, "vae", kind)
    except OSError:
        return _pretrained(name, None, kind)  # a repository that is the VAE alone


def _pretrained(name: str, subfolder: str | None, kind: type[ModelMixin]) -> ModelMixin:
    try:
        model, loading = kind.from_pretrained(
            name,
            subfolder=subfolder,
            torch_dtype=torch.float32,
            output_loading_info=True,
            use_safetensors=True,
        )
    except (OSError, RuntimeError, ValueError, SafetensorError) as error:
        reason = " ".join(str(error).split())[:300]
        raise OSError(
            f"{name}: the VAE could not be loaded from there; give a whole local diffusers folder, or a hub "
            f"name with a network to fetch it by, either with safetensors and no pickle ({reason})"
        ) from error
    wrong = {kind: keys for kind, keys in loading.items() if keys}
    if wrong:
        kind, keys = next(iter(wrong.items()))
        raise ValueError(f"{name}: these weights do not fit their config ({kind}: {next(iter(keys))!r})")
    return model
