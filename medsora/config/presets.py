"""The model's sizes: the paper's (Table 1) and a small one for 64x64 and below."""

from __future__ import annotations

from typing import Any

PRESETS: dict[str, dict[str, Any]] = {
    "tiny": {"width": 192, "depth": 4, "heads": 6, "d_state": 32, "headdim": 32},
    "S": {"depth": 6},
    "B": {"depth": 12},
    "L": {"depth": 24},
    "XL": {"depth": 48},
}
