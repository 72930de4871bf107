"""The models' sizes: the paper's (Table 1), a small one for 64x64 and below, and those of the baselines."""

from __future__ import annotations

from typing import Any

PRESETS: dict[str, dict[str, Any]] = {
    "tiny": {"width": 192, "depth": 4, "heads": 6, "d_state": 32, "headdim": 32},
    "S": {"depth": 6},
    "B": {"depth": 12},
    "L": {"depth": 24},
    "XL": {"depth": 48},
}
ENDORA_PRESETS: dict[str, dict[str, Any]] = {
    "tiny": {"width": 192, "depth": 6, "heads": 6},  # as many parameters as MedSora's tiny, within 1 %
    "S": {"width": 384, "depth": 12, "heads": 6},
    "B": {"width": 768, "depth": 12, "heads": 12},
    "L": {"width": 1024, "depth": 24, "heads": 16},
    "XL": {"width": 1152, "depth": 28, "heads": 16},
}
ENDOGEN_PRESETS: dict[str, dict[str, Any]] = {
    "tiny": {"width": 192, "depth": 6, "heads": 6, "hidden": 512},
    "B": {"width": 768, "depth": 12, "heads": 12, "hidden": 2048},
    "L": {"width": 1024, "depth": 24, "heads": 16, "hidden": 2816},
    "XL": {"width": 1280, "depth": 36, "heads": 20, "hidden": 3584},
}
# Values of `denoiser.preset`: the denoiser's class and its own name of the size.
NAMED_PRESETS: dict[str, tuple[str, str]] = {
    **{name: ("MedSora", name) for name in PRESETS},
    **{f"endora-{name}": ("Endora", name) for name in ENDORA_PRESETS},
}
