"""Which tokens follow one another in the scans: compared with loops over rows, columns and positions."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from medsora.config.switches import SWITCHES
from medsora.denoiser import MedSora
from medsora.denoiser.mamba import FrameScans, Mamba2, SpatialMamba, TemporalMamba, frame_scans
from medsora.spiral import SpatialScan, scan_order

WIDTH = 16
SETTINGS: dict[str, Any] = {"d_state": 8, "headdim": 8, "expand": 2, "d_conv": 4, "backend": "reference"}


def scanned(mamba: Mamba2, sequence: Tensor, order: Tensor, directions: str) -> Tensor:
    """Eq. 8 for one sequence (L, d), written out: rearrange, scan, put back, sum both directions."""
    total = torch.zeros_like(sequence)
    for each in (order, order.flip(0)) if directions == "both" else (order,):
        total[each] += mamba(sequence[each][None])[0]
    return total


def along_time(frames: int, joint: int, tokens: int) -> list[FrameScans]:
    return frame_scans(frames, joint, (1, tokens), 0, torch.device("cpu"))


def axes_by_loops(
    spatial: SpatialMamba,
    clip: Tensor,
    settings: SpatialScan = SpatialScan(),  # noqa: B008
) -> tuple[Tensor, Tensor]:
    """Eq. 8 for one clip (f, h̄, w̄, d), a row and a column at a time: y_h and y_w."""
    frames, rows, cols, _ = clip.shape
    height, width = torch.zeros_like(clip), torch.zeros_like(clip)
    order = scan_order(settings.scan, frames, cols, spatial.variant)
    for row in range(rows):
        y = scanned(spatial.mamba, clip[:, row].flatten(0, 1), order, settings.directions)
        height[:, row] = y.view(frames, cols, -1)
    order = scan_order(settings.scan, frames, rows, spatial.variant)
    for col in range(cols):
        y = scanned(spatial.mamba, clip[:, :, col].flatten(0, 1), order, settings.directions)
        width[:, :, col] = y.view(frames, rows, -1)
    return height, width


def spatial_by_loops(spatial: SpatialMamba, clip: Tensor) -> Tensor:
    """Eq. 8-9 for one clip."""
    height, width = axes_by_loops(spatial, clip)
    return spatial.gate_width(width).sigmoid() * width + spatial.gate_height(height).sigmoid() * height


@pytest.mark.parametrize(("grid", "variant"), [((3, 3), 0), ((3, 3), 7), ((2, 4), 5), ((4, 1), 2)])
@pytest.mark.parametrize("joint", [3, 2, 1])
@torch.no_grad()
def test_spatial_scan_equals_a_loop_over_rows_and_columns(
    grid: tuple[int, int], variant: int, joint: int
) -> None:
    spatial = SpatialMamba(WIDTH, variant, **SETTINGS)
    x = torch.randn(2, 3, grid[0] * grid[1], WIDTH)
    y = spatial(x, frame_scans(3, joint, grid, variant, x.device)).unflatten(2, grid)
    for sample, result in zip(x.unflatten(2, grid), y, strict=True):
        clips = [sample[:joint], *sample[joint:, None]]
        expected = torch.cat([spatial_by_loops(spatial, clip) for clip in clips])
        torch.testing.assert_close(result, expected, atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize("scan", SWITCHES["scan"])
@pytest.mark.parametrize("directions", SWITCHES["directions"])
@pytest.mark.parametrize("backend", ["reference", "torch"])
@torch.no_grad()
def test_each_order_direction_axis_and_fusion_equals_a_loop(scan: str, directions: str, backend: str) -> None:
    x, grid = torch.randn(1, 3, 6, WIDTH), (2, 3)
    for axes in SWITCHES["axes"]:
        settings = SpatialScan(scan, axes, directions)
        for fusion in SWITCHES["fusion"]:
            spatial = SpatialMamba(WIDTH, 6, axes=axes, fusion=fusion, **SETTINGS | {"backend": backend})
            y = spatial(x, frame_scans(3, 3, grid, 6, x.device, settings))[0].unflatten(1, grid)
            height, width = axes_by_loops(spatial, x[0].unflatten(1, grid), settings)
            terms = {"height": (height, spatial.gate_height), "width": (width, spatial.gate_width)}
            terms = [terms[axis] for axis in terms if axes in ("both", axis)]
            if fusion == "mean":
                assert spatial.gate_height is spatial.gate_width is None
                expected = sum(value for value, _ in terms) / len(terms)
            else:
                expected = sum(gate(value).sigmoid() * value for value, gate in terms)
            torch.testing.assert_close(y, expected, atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize("joint", [4, 2])
@torch.no_grad()
def test_temporal_scan_equals_a_loop_over_positions(joint: int) -> None:
    temporal = TemporalMamba(WIDTH, **SETTINGS)
    x = torch.randn(2, 4, 5, WIDTH)
    y = temporal(x, along_time(4, joint, 5))
    for position in range(5):
        track = x[:, :, position]
        clips = [track[:, :joint], *(track[:, frame : frame + 1] for frame in range(joint, 4))]
        expected = torch.cat([temporal.mamba(clip) for clip in clips], dim=1)
        torch.testing.assert_close(y[:, :, position], expected, atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize("frame", range(5))
@torch.no_grad()
def test_temporal_scan_is_causal_frame_by_frame(frame: int) -> None:
    temporal = TemporalMamba(WIDTH, **SETTINGS | {"backend": "auto"})
    x = torch.randn(1, 5, 3, WIDTH)
    changed = x.clone()
    changed[:, frame, 1] += 1
    difference = (temporal(changed, along_time(5, 5, 3)) - temporal(x, along_time(5, 5, 3))).abs().amax(-1)[0]
    assert not difference[:frame].any()
    assert (difference[frame:, 1] > 0).all()
    assert not difference[:, [0, 2]].any(), "positions do not meet in time"


def test_mamba_keeps_its_own_initialisation_inside_the_model() -> None:
    model = MedSora.from_preset("tiny", depth=2)
    for name, value in model.named_parameters():
        if name.endswith("dt_bias"):
            step = torch.nn.functional.softplus(value)
            assert 9e-4 < step.min() < step.max() < 0.11
            assert step.std() > 0
        if name.endswith("A_log"):
            assert 0 <= value.min() < value.max() <= torch.tensor(16.0).log()
        if name.endswith((".D", "mamba.norm.weight")):
            assert (value == 1).all()


def test_names_and_sizes_are_those_of_mamba_ssm() -> None:
    mamba = Mamba2(512, d_state=128, headdim=64, expand=2, d_conv=4, backend="auto")
    assert {name: tuple(value.shape) for name, value in mamba.state_dict().items()} == {
        "dt_bias": (16,),
        "A_log": (16,),
        "D": (16,),
        "in_proj.weight": (2320, 512),
        "conv1d.weight": (1280, 1, 4),
        "conv1d.bias": (1280,),
        "norm.weight": (1024,),
        "out_proj.weight": (512, 1024),
    }
    assert sum(value.numel() for value in mamba.parameters()) == 1_719_600
