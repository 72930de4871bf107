"""`python -m medsora.denoiser`: the parameters of every preset, part by part (Table 1)."""

from __future__ import annotations

from rich.console import Console
from rich.table import Table

from medsora.denoiser import PRESETS, parameter_table

counts = {preset: parameter_table(preset) for preset in PRESETS}
table = Table("part", title="Parameters, at 128x128 pixels")
for preset in PRESETS:
    table.add_column(preset, justify="right")
for part in counts["S"]:
    table.add_row(part, *(f"{counts[preset][part]:,}" for preset in PRESETS))
with_one_head = (parameter_table(preset, heads=1)["total"] for preset in PRESETS)
table.add_row("total, one head, as in Table 1", *(f"{count:,}" for count in with_one_head))
Console(width=118).print(table)
