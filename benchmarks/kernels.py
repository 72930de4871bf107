"""Times the scan on this machine, every usable backend beside the others: `python -m benchmarks.kernels`.

One denoising step scans, per block, both axes of the frames in two directions and every token position over
time. A preset's value is its blocks times that. The floor is what no version can beat here: each input byte
read and each output byte written once at the speed of a large copy, or the products at the speed of a large
product, whichever takes longer; both speeds are measured first, in the same run.

Sizes that take minutes here are left out with a line that names them; `reference`, which goes token by token,
is timed once, at the smallest size alone. Memory is the peak of forward and backward on a GPU, and on a CPU
what autograd keeps between them.
"""

from __future__ import annotations

import argparse
import statistics
import sys
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor
from torch.autograd.graph import saved_tensors_hooks

from benchmarks.support import measure
from medsora.kernels import backends, mamba2_scan

BLOCKS = {"S": 6, "B": 12, "L": 24}
HEADS, HEADDIM, D_STATE, TAPS, SIDE = 16, 64, 128, 4, 8  # presets S, B and L at 128x128 pixels
D_INNER = HEADS * HEADDIM
CHANNELS = D_INNER + 2 * D_STATE
FEATURES = D_INNER + CHANNELS + HEADS
REFERENCE_STEPS = 48  # length x batch
CPU_TOKENS = 2**14
DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}


@dataclass(frozen=True)
class Speed:
    """What this device reaches: bytes moved and operations done per second."""

    bytes_per_second: float
    operations_per_second: float


def main() -> None:
    """Print the table for the selected sizes."""
    for _ in rows():
        pass


def rows() -> Iterator[dict[str, object]]:
    """Print the table for the selected sizes; yield each row, once its size is done."""
    args = _arguments()
    device = torch.device(args.device)
    if device.type == "cuda":
        torch.cuda.set_device(device)
    dtype = DTYPES[args.dtype]
    names = [name for name, reason in backends().items() if reason is None]
    for name, reason in backends().items():
        if reason is not None:
            print(f"{name}: not here, {reason}")
    speed = _measure_speed(device, dtype)
    print(
        f"{measure.device_name(device)}, {args.dtype}, torch {torch.__version__}: "
        f"{speed.bytes_per_second / 1e9:.0f} GB/s, {speed.operations_per_second / 1e12:.2f} TFLOP/s"
    )
    header = f"{'length':>6} {'batch':>5} {'backend':>10} {'forward':>10} {'with backward':>14} {'memory':>9}"
    print(f"{header} {'to mamba_ssm':>12} {'to floor':>8}   forward of " + ", ".join(BLOCKS) + " (ms)")
    for length in args.lengths:
        for batch in args.batches:
            if length * batch * SIDE > args.most_tokens:
                print(
                    f"{length:6} {batch:5} left out: {length * batch * SIDE:,} tokens are more than "
                    f"--most-tokens {args.most_tokens:,}"
                )
                continue
            timed = [name for name in names if name != "reference" or length * batch <= REFERENCE_STEPS]
            yield from report(length, batch, timed, device, dtype, speed, args.seconds)
    print(f"reference: left out where length x batch is more than {REFERENCE_STEPS}")


def report(
    length: int,
    batch: int,
    names: list[str],
    device: torch.device,
    dtype: torch.dtype,
    speed: Speed,
    seconds: float,
) -> list[dict[str, object]]:
    """Print and return a row per backend: milliseconds of one block's scans, and their ratios."""
    scans = block_scans(batch, length // SIDE, device, dtype)
    floor = _floor_seconds(batch, length, dtype, speed)
    rows, failed = {}, []
    for name in names:
        timed = measure.seconds if name == "reference" else partial(_median_seconds, seconds=seconds)
        try:
            forward = timed(lambda name=name: run(scans, name, backward=False), device)
            both = timed(lambda name=name: run(scans, name, backward=True), device)
            rows[name] = forward, both, memory_bytes(scans, name, device)
        except Exception as error:  # one backend's failure, of whatever kind, costs no other its values
            reason = str(error).splitlines()[0][:100] if str(error) else type(error).__name__
            print(f"{length:6} {batch:5} {name:>10} failed: {reason}", flush=True)
            failed.append({"length": length, "batch": batch, "backend": name, "failed": reason})
            if device.type == "cuda":
                torch.cuda.empty_cache()
    for name, (forward, both, memory) in rows.items():
        theirs = f"{rows['mamba_ssm'][0] / forward:11.2f}x" if "mamba_ssm" in rows else f"{'-':>12}"
        size = f"{memory / 2**20:6.0f} MiB"
        presets = " ".join(f"{blocks * forward * 1e3:9.3f}" for blocks in BLOCKS.values())
        print(
            f"{length:6} {batch:5} {name:>10} {forward * 1e3:7.3f} ms {both * 1e3:11.3f} ms "
            f"{size} {theirs} {forward / floor:7.1f}x   {presets}",
            flush=True,
        )
    return [
        {
            "length": length,
            "batch": batch,
            "backend": name,
            "forward ms": round(forward * 1e3, 4),
            "with backward ms": round(both * 1e3, 4),
            "bytes": memory,
            "times mamba_ssm": round(rows["mamba_ssm"][0] / forward, 3) if "mamba_ssm" in rows else None,
            "times the floor": round(forward / floor, 3),
        }
        for name, (forward, both, memory) in rows.items()
    ] + failed


def block_scans(
    batch: int, frames: int, device: torch.device, dtype: torch.dtype
) -> list[tuple[dict[str, Tensor], Tensor]]:
    """Inputs and orders of a block's spatial and temporal scan over frames of SIDE x SIDE tokens."""
    generator = torch.Generator().manual_seed(0)

    def normal(*shape: int, scale: float = 1.0) -> Tensor:
        return (scale * torch.randn(*shape, generator=generator)).to(device)

    def inputs() -> dict[str, Tensor]:
        weights = {
            "conv_weight": normal(CHANNELS, TAPS, scale=0.5),
            "conv_bias": normal(CHANNELS, scale=0.2),
            "dt_bias": normal(HEADS) - 4,
            "A_log": torch.linspace(0, 2.7, HEADS, device=device),
            "D": torch.ones(HEADS, device=device),
            "norm_weight": torch.ones(D_INNER, device=device),
        }
        tokens = torch.empty(batch, frames * SIDE * SIDE, FEATURES, device=device, dtype=dtype).normal_()
        return {name: value.requires_grad_() for name, value in ({"zxbcdt": tokens} | weights).items()}

    numbers = torch.arange(frames * SIDE * SIDE).view(frames, SIDE, SIDE)
    order = torch.randperm(frames * SIDE, generator=generator)
    both_ways = torch.stack((order, order.flip(0)))
    rows, cols = numbers.transpose(0, 1).flatten(1), numbers.permute(2, 0, 1).flatten(1)
    spatial = torch.stack([lines[:, both_ways].transpose(0, 1) for lines in (rows, cols)])
    temporal = numbers.flatten(1).T[None, None]
    return [(inputs(), order.int().contiguous().to(device)) for order in (spatial, temporal)]


def run(scans: list[tuple[dict[str, Tensor], Tensor]], backend: str, *, backward: bool) -> None:
    """A block's scans once, optionally with gradients of tokens and weights."""
    with torch.set_grad_enabled(backward):
        for inputs, orders in scans:
            out = mamba2_scan(**inputs, orders=orders, headdim=HEADDIM, backend=backend)
            if backward:
                torch.autograd.grad(out, list(inputs.values()), out.detach())


def _floor_seconds(batch: int, length: int, dtype: torch.dtype, speed: Speed) -> float:
    """Least time of a block's scans: zxbcdt read, the outputs of axes and time written, or the products."""
    tokens = batch * length * SIDE
    moved = tokens * (2 * FEATURES + 3 * D_INNER) * dtype.itemsize

    def per_token(
        steps: int,
    ) -> float:  # the causal half of C.B and of the product with x, or states if cheaper
        return min(steps / 2, 2 * D_STATE) * 2 * D_INNER + steps / 2 * 2 * D_STATE

    operations = tokens * (4 * per_token(min(length, 64)) + per_token(min(length // SIDE, 64)))
    return max(moved / speed.bytes_per_second, operations / speed.operations_per_second)


def _measure_speed(device: torch.device, dtype: torch.dtype) -> Speed:
    """Bytes per second of a large copy (read and written), operations per second of a large product."""
    on_gpu = device.type == "cuda"
    source = torch.randn(2**28 if on_gpu else 2**24, device=device)
    target = torch.empty_like(source)
    side = 8192 if on_gpu else 1024
    a, b = (torch.randn(side, side, device=device, dtype=dtype) for _ in range(2))
    copy = _median_seconds(lambda: target.copy_(source), device, 0.3)
    product = _median_seconds(lambda: a @ b, device, 0.3)
    return Speed(2 * source.nbytes / copy, 2 * side**3 / product)


def _median_seconds(work: Callable[[], object], device: torch.device, seconds: float) -> float:
    """Median duration after a warm-up, over calls of about `seconds`; on a GPU of replays of a CUDA graph."""
    work()
    fewest, most = 3, sys.maxsize
    if device.type == "cuda":
        fewest, most = 5, 200
        for _ in range(3):
            work()
        torch.cuda.synchronize()
        work = _as_graph(work)
    durations: list[float] = []
    while len(durations) < fewest or (sum(durations) < seconds and len(durations) < most):
        durations.append(measure.seconds(work, device))
    return statistics.median(durations)


def _as_graph(work: Callable[[], object]) -> Callable[[], object]:
    graph, current = torch.cuda.CUDAGraph(), torch.cuda.current_stream()
    try:
        with torch.cuda.graph(graph):
            work()
    except RuntimeError as error:  # a backend that synchronises cannot be captured: it is timed as it is
        print(f"not captured in a CUDA graph: {str(error).splitlines()[0]}")
        torch.cuda.set_stream(current)  # a capture whose end fails leaves its own stream current
        torch.cuda.synchronize()
        return work
    return graph.replay


def memory_bytes(scans: list[tuple[dict[str, Tensor], Tensor]], backend: str, device: torch.device) -> int:
    """Memory of forward and backward beyond inputs: the peak on a GPU, what autograd keeps on a CPU."""
    if device.type != "cuda":
        inputs = [tensor for given, orders in scans for tensor in (*given.values(), orders)]
        return kept_bytes(inputs, lambda: run(scans, backend, backward=True))
    return measure.peak_bytes(lambda: run(scans, backend, backward=True))


def kept_bytes(left_out: Iterable[Tensor], forward: Callable[[], object]) -> int:
    """Return the bytes of all that autograd keeps for a backward, repeats and the tensors `left_out` not."""
    known = {tensor.untyped_storage()._cdata for tensor in left_out}
    kept: dict[int, Tensor] = {}  # holds the tensors, so that no storage's address is given away again

    def keep(tensor: Tensor) -> Tensor:
        place = tensor.untyped_storage()._cdata
        if place not in known:
            kept.setdefault(place, tensor)
        return tensor

    with saved_tensors_hooks(keep, lambda tensor: tensor):
        forward()
    return sum(tensor.untyped_storage().nbytes() for tensor in kept.values())


def _arguments() -> argparse.Namespace:
    on_gpu = torch.cuda.is_available()
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.kernels", description=__doc__.splitlines()[0].partition(":")[0] + "."
    )
    parser.add_argument("--device", default="cuda" if on_gpu else "cpu")
    parser.add_argument("--dtype", choices=tuple(DTYPES), default="bfloat16" if on_gpu else "float32")
    lengths, batches = (48, 192, 1024, 4096), (1, 2, 8, 32)
    parser.add_argument("--lengths", type=int, nargs="+", default=lengths, help="steps of a spatial sequence")
    parser.add_argument("--batches", type=measure.positive, nargs="+", default=batches)
    parser.add_argument(
        "--most-tokens",
        type=int,
        metavar="N",
        help="larger sizes (length x batch x 8) are left out (default: on a CPU 16384, on a GPU none are)",
    )
    parser.add_argument("--seconds", type=float, default=0.2 if on_gpu else 1.0, help="per value")
    args = parser.parse_args()
    if args.most_tokens is None:
        args.most_tokens = sys.maxsize if args.device.startswith("cuda") else CPU_TOKENS
    if bad := [length for length in args.lengths if length < SIDE or length % SIDE]:
        parser.error(f"lengths must be multiples of {SIDE} (a line of tokens per frame), got {bad}")
    return args


if __name__ == "__main__":
    main()
