"""What EndoGen's cache of keys and values saves: `python -m benchmarks.tokens --preset tiny --codes 1024`.

Seconds of writing a clip code by code with the cache, and without it: there every code takes a forward over
all codes before, measured at evenly spaced positions and summed. Both take turns, A B A B.
"""

from __future__ import annotations

import argparse
import math
import statistics

import torch

from benchmarks.support.measure import Times, ratio, take_turns
from medsora.baselines.endogen import EndoGen
from medsora.baselines.endogen.generate import generate
from medsora.config.presets import ENDOGEN_PRESETS
from medsora.errors import BadInput, check_limits
from medsora.runtime.exit import exit_with_status

POSITIONS = 16


def main() -> None:
    """Measure and print the presets on the command line."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.tokens", description=__doc__.splitlines()[0])
    add = parser.add_argument
    add("--preset", default="tiny", choices=list(ENDOGEN_PRESETS), help="(default: %(default)s)")
    add(
        "--codes",
        type=int,
        default=1024,
        metavar="N",
        help="codes per clip, a square number (default: %(default)s)",
    )
    add("--rounds", type=int, default=2, metavar="N", help="turns of each (default: %(default)s)")
    options = parser.parse_args()
    check_limits(options, {"codes": (1, 2**20), "rounds": (1, math.inf)})
    times = measure(options.preset, options.codes, options.rounds)
    for name, seconds in times.items():
        median = statistics.median(seconds)
        print(f"{name:9} {median:9.2f} s a clip, {options.codes / median:8.1f} tokens per second")
    print(f"the cache is {ratio(times['uncached'], times['cached'])} as fast")


def measure(preset: str, codes: int, rounds: int, positions: int = POSITIONS) -> Times:
    """Return the seconds of one clip of `codes` codes, "cached" and "uncached", in every round.

    An uncached clip's are those of `positions` forwards, times `codes` / `positions`.
    Raises `BadInput` unless `codes` is a square.
    """
    side = math.isqrt(codes)
    if side**2 != codes:
        raise BadInput(f"--codes is {codes} but must be a square, such as {side**2} or {(side + 1) ** 2}.")
    model = EndoGen.from_preset(preset, rows=side, cols=side).eval()
    torch.nn.init.normal_(model.output.weight, std=0.02)
    clip = torch.randint(model.config.num_codes, (1, codes - 1))
    lengths = [int((k + 0.5) * codes / positions) for k in range(positions)]

    def cached() -> None:
        generate(model, [0], [torch.Generator().manual_seed(0)])

    @torch.no_grad()
    def uncached() -> None:
        for length in lengths:
            model(clip[:, :length])

    times = take_turns({"cached": cached, "uncached": uncached}, rounds, torch.device("cpu"))
    times["uncached"] = [seconds * codes / positions for seconds in times["uncached"]]
    return times


if __name__ == "__main__":
    exit_with_status(main)
