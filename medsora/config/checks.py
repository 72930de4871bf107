"""Checks of a config's values: the schema's choices and ranges, and what keys demand of one another."""

from __future__ import annotations

import re
from dataclasses import fields

from medsora.config.crop import checked_crop
from medsora.config.schema import MAX_SIDE_PX, Config, PhaseConfig, values_of
from medsora.config.switches import check_switches
from medsora.errors import BadInput
from medsora.vae.shapes import FRAMES_PER_CHUNK

FOLDER_NAME = re.compile(r"\w[\w .,+=@-]{0,99}")


def check_config(config: Config, source: str) -> None:
    """Check every value of `config`, and put back the words off and no, which YAML reads as false.

    Raises `BadInput` with one sentence that names `source` and the key.
    """
    _restore_words(config)
    _check_forms(config, source)
    _check_rules(config, source)
    _check_conditions(config, source)
    _check_phases(config.train_dit.phases, source)


def _restore_words(config: Config) -> None:
    for section in (getattr(config, outer.name) for outer in fields(config)):
        for inner in fields(section):
            for word in {"off", "no"} & set(inner.metadata["key"].choices):
                if getattr(section, inner.name) == "False":
                    setattr(section, inner.name, word)


def _check_forms(config: Config, source: str) -> None:
    """Check values whose rule is neither a choice nor a range, or needs a sentence of its own."""
    for section, key, place in (
        ("run", "name", "the place is run.dir"),
        ("tracking", "project", "TensorBoard's curves lie in it, in the run's folder"),
    ):
        name = getattr(getattr(config, section), key)
        if not FOLDER_NAME.fullmatch(name):
            raise BadInput(
                f"{source}: {section}.{key} is {name!r} but must be one folder's name: a letter or digit "
                f"first, no slashes; {place}."
            )
    for key, value in config.denoiser.overrides.items():
        if isinstance(value, bool) or not isinstance(value, int | float):
            continue
        rate = key == "dropout"
        if not (0 <= value < 1 if rate else 0 < value <= MAX_SIDE_PX):
            allowed = "at least 0 and below 1" if rate else f"1 to {MAX_SIDE_PX}"
            raise BadInput(f"{source}: denoiser.overrides.{key} is {value} but must be {allowed}.")
    size = config.data.size
    sides = size if isinstance(size, list | tuple) and len(size) == 2 else [size]
    if not all(type(side) is int and side <= MAX_SIDE_PX for side in sides):
        raise BadInput(
            f"{source}: data.size is {size!r} but must be one number of pixels or [height, width], "
            f"each at most {MAX_SIDE_PX}."
        )
    checked_crop(config.data.crop, f"{source}: data.crop")
    images = config.images
    if images.encoding == "packed" and images.count % _chunk(config):
        raise BadInput(
            f"{source}: images.count is {images.count}, but packed images come in groups of "
            f"{FRAMES_PER_CHUNK}; use a multiple of {FRAMES_PER_CHUNK}, 0, or images.encoding=single."
        )


def _check_rules(config: Config, source: str) -> None:
    """Check every value against its `Key`."""
    for name, key, value in values_of(config):
        if key.pair and isinstance(value, list) and len(value) != 2:
            raise BadInput(f"{source}: {name} is {value} but must be two numbers, each {key.range}.")
        if value is None or isinstance(value, list | dict):
            continue
        if key.choices and value not in key.choices:
            raise BadInput(f"{source}: {name} is '{value}' but must be one of {', '.join(key.choices)}.")
        if key.range and not key.in_range(value):
            null = ", or null" if key.nullable else ""
            raise BadInput(f"{source}: {name} is {value} but must be {key.range}{null}.")


def _check_conditions(config: Config, source: str) -> None:
    """Check what one key demands of another."""
    data, settings = config.data, config.train_dit
    if (data.interval is None) == (data.rate is None):
        both = "both set" if data.rate is not None else "both null"
        raise BadInput(
            f"{source}: data.interval ({data.interval}) and data.rate ({data.rate}) are {both}; set one "
            "and the other to null."
        )
    if data.group is not None and data.group != "folder" and not data.group.lower().endswith(".csv"):
        try:
            groups = re.compile(data.group).groups
        except re.error as error:
            raise BadInput(f"{source}: data.group is {data.group}, which is no pattern ({error}).") from None
        if groups != 1:
            raise BadInput(
                f"{source}: data.group is {data.group}, a pattern with {groups} groups; put the patient, and "
                "nothing else, into one pair of parentheses."
            )
    check_switches(vars(config.denoiser), f"{source}: ", "denoiser")
    vae, stage_1 = config.vae, config.train_vae
    unused = ("kl", "coarse", "sharpness", "motion") if vae.kind == "vq" else ("l2",)
    if used := [name for name in unused if getattr(stage_1, name)]:
        raise BadInput(
            f"{source}: train_vae.{used[0]} is {getattr(stage_1, used[0])}, but vae.kind {vae.kind} has no "
            "such loss; set it to 0."
        )
    if config.denoiser.heads is not None and not config.denoiser.local_attention:
        raise BadInput(
            f"{source}: denoiser.heads is {config.denoiser.heads}, but denoiser.local_attention, whose heads "
            "these are, is false; leave denoiser.heads out."
        )
    if data.balance and data.labels == "none":
        raise BadInput(f"{source}: data.balance needs labels to balance; set data.labels (folders or a CSV).")
    if config.cache.prior == "disk" and config.cache.latents != "disk":
        raise BadInput(
            f"{source}: cache.prior: disk keeps features of the windows that cache.latents: disk takes its "
            "clips from; set both, or none."
        )
    if settings.first_frame_prob == 0:
        return
    if config.alignment.weight and config.alignment.correlation == "batch":
        raise BadInput(
            f"{source}: alignment.correlation batch takes every sample, but those with given frames are left "
            "out of the alignment (train_dit.first_frame_prob); use sample."
        )
    chunk = _chunk(config)
    for frames in settings.given_frames or [0]:
        whole = type(frames) is int and 0 < frames < data.frames  # OmegaConf lets a list pass for a number
        if not whole or (data.frames - frames) % chunk:
            raise BadInput(
                f"{source}: train_dit.given_frames is {settings.given_frames}, but of clips of {data.frames} "
                f"frames only {_givable(data.frames, chunk)} can be given: whole groups of latents."
            )


def _chunk(config: Config) -> int:
    """Frames that the config's VAE encodes together."""
    return FRAMES_PER_CHUNK if config.vae.kind == "causal" else 1


def _givable(frames: int, chunk: int) -> str:
    if chunk == 1:
        return f"1 to {frames - 1}"
    counts = [str(count) for count in range(1, frames) if (frames - count) % chunk == 0]
    return " or ".join(counts) or "none (a frame of its own needs clips of 8k+1)"


def _check_phases(phases: list[PhaseConfig], source: str) -> None:
    if not phases or phases[-1].until_epoch is not None:
        raise BadInput(
            f"{source}: the last of train_dit.phases must leave until_epoch empty: it runs to the end."
        )
    before = 0
    for number, phase in enumerate(phases):
        name = f"train_dit.phases[{number}]"
        if number + 1 < len(phases):
            if phase.until_epoch is None or phase.until_epoch <= before:
                raise BadInput(f"{source}: {name}.until_epoch must be a whole number greater than {before}.")
            before = phase.until_epoch
