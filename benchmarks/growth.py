"""What longer clips cost: `python -m benchmarks.growth`, a denoising step of B at 16 and at 256 frames.

Counted everywhere (FLOPs on shapes alone), and on a GPU timed as well. Linear is 1.
"""

from __future__ import annotations

import argparse
from functools import partial
from pathlib import Path

import torch
from torch._subclasses.fake_tensor import FakeTensorMode

from benchmarks.support.measure import RESULTS, device_name, keep, median_ms, take_turns
from benchmarks.support.wirings import gflop, latents
from medsora import PRESETS, MedSora
from medsora.sampling.prepared import PreparedDenoiser

SHORT, LONG = 4, 64  # latents of 16 and of 256 frames


def main() -> None:
    """Count, time on a GPU, print and keep."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.growth", description=__doc__.splitlines()[0])
    parser.add_argument("--preset", default="B", choices=tuple(PRESETS))
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--results", type=Path, default=RESULTS, metavar="FILE", help="where to append")
    parser.add_argument("--dry", action="store_true", help="print, but keep nothing")
    options = parser.parse_args()
    device = torch.device(options.device)
    values: dict[str, object] = {"preset": options.preset}
    if device.type == "cuda":
        values["time, times linear"] = round(timed(options.preset, device), 3)
    values["FLOPs, times linear"] = round(counted(options.preset), 3)
    print(f"{device_name(device)}: {values}")
    if not options.dry:
        keep("growth", device, values, options.results)


def counted(preset: str) -> float:
    """Growth of a step's FLOPs over that of the frames."""
    with FakeTensorMode(allow_non_fake_inputs=True):
        model = MedSora.from_preset(preset, backend="torch").eval()
        inputs = (latents(1, count, torch.device("cpu"), torch.float32) for count in (SHORT, LONG))
        short, long = (gflop(partial(model, z, t)) for z, t in inputs)
    return long / short / (LONG / SHORT)


@torch.no_grad()
def timed(preset: str, device: torch.device) -> float:
    """Growth of a step's time over that of the frames, at a batch that fills the device."""
    dtype = torch.float32 if device.type == "cpu" else torch.bfloat16
    model = MedSora.from_preset(preset).to(device, dtype).eval()
    prepared = PreparedDenoiser(model, (500,))
    works = {str(n): partial(prepared, *latents(8, n, device, dtype)) for n in (SHORT, LONG)}
    times = take_turns(works, 10, device)
    return median_ms(times[str(LONG)]) / median_ms(times[str(SHORT)]) / (LONG / SHORT)


if __name__ == "__main__":
    main()
