"""Switches of the denoiser's parts, for ablations; the first choice of each is the paper's."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from medsora.errors import BadInput

SWITCHES: dict[str, tuple[Any, ...]] = {
    "spatial": ("mamba", "attention"),
    "temporal": ("mamba", "attention", "none"),
    "local_attention": (True, False),
    "scan": ("spiral", "raster", "snake"),
    "axes": ("both", "height", "width"),
    "directions": ("both", "forward"),
    "fusion": ("gate", "mean"),
}
PAPER = {name: choices[0] for name, choices in SWITCHES.items()}
OF_SPATIAL_MAMBA = ("scan", "axes", "directions", "fusion")


def check_switches(values: Mapping[str, Any], source: str = "", section: str = "") -> None:
    """Raise `BadInput` for an unknown value or a pair that cannot be built.

    `values` may hold other settings, too; the sentence begins with `source`, and names of switches with
    their `section` of the config.
    """
    prefix = f"{section}." if section else ""
    for name, choices in SWITCHES.items():
        if values[name] not in choices:
            known = ", ".join(map(str, choices))
            raise BadInput(f"{source}{prefix}{name} {values[name]!r} is unknown; it is one of {known}")
    if values["spatial"] == "mamba":
        return
    for name in OF_SPATIAL_MAMBA:
        if values[name] != PAPER[name]:
            raise BadInput(
                f"{source}{prefix}{name} is {values[name]}, but {prefix}spatial attention scans nothing; "
                f"leave it at {PAPER[name]}, or set {prefix}spatial to mamba"
            )
    if values["temporal"] == "none":
        raise BadInput(
            f"{source}{prefix}temporal is none and {prefix}spatial attention, which sees one frame: "
            "frames would never exchange information; set one of them to mamba"
        )
