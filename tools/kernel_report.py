"""Compiled GPU kernels and the modelled time of a step, without a GPU: `python -m tools.kernel_report`.

Each kernel of a sampling step and of a training step (`tools.kernel_launches`) is compiled with the arguments
it was launched with, and its machine code is read: registers, spills, matrix instructions, widths of memory
accesses, instructions of a warp.

The modelled times of a step on an H200 are no measurement. What they assume is printed above them. A spill is
any use of a thread's stack: these kernels have no other.
"""

from __future__ import annotations

import argparse
import math
import re
import subprocess
import sys
import tempfile
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import torch
import triton
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource

from benchmarks.support.wirings import H200_FLOOR_S
from tools.kernel_launches import CHIPS, PRODUCTS, STEPS, Launch, Model, Operator, denoiser

DTYPES = {"bf16": torch.bfloat16, "fp32": torch.float32}
# Loops that stay in machine code, outermost first: the arguments that hold their numbers of passes.
LOOPS = {
    "scan_forward": ("chunks", "HEADS_AT_ONCE"),
    "scan_backward": ("chunks", "HEADS_AT_ONCE"),
    "gates_kernel": ("PARTS",),
    "norm_backward": ("rows_per_program",),
    "conv_backward": ("blocks_per_program", "ALL_ORDERS", "HEAD_BLOCKS"),
}
# Bars of a sampling step in bf16.
MIN_SCAN_PROGRAMS = 4  # per multiprocessor at once
MAX_LAUNCHES_OF_A_BLOCK = 15
MAX_TIMES_THE_FLOOR = {1: 5.0, 32: 1.7}  # batch size of preset B -> limit
REGISTERS_OF_A_PROCESSOR, RESERVED_SHARED_BYTES = 65536, 1024
SCHEDULERS = 4  # per multiprocessor


@dataclass(frozen=True)
class Compiled:
    """A kernel's machine code, read."""

    registers: int  # per thread
    spilled_bytes: int  # per thread
    shared_bytes: int  # per program
    warps: int  # per program
    programs: int  # per multiprocessor at once
    widths: dict[int, int]  # accesses of global memory by a warp, by the bytes that a thread moves
    instructions: int  # that a warp issues
    matrix_instructions: int  # among them
    flops: int  # a program's matrix instructions, padding counted

    def seconds(self, launch: Launch, model: Model) -> float:
        """Modelled time of a launch."""
        processors = CHIPS[90].plan.multiprocessors
        programs = math.prod(launch.grid)
        at_once = min(self.programs, -(-programs // processors))
        cycles = self.instructions * max(model.cycles_between, at_once * self.warps / SCHEDULERS)
        rounds = -(-programs // (at_once * processors))
        products = self.flops * programs / model.flops_per_s[torch.bfloat16]
        return model.start_s + max(
            rounds * cycles / model.clock_hz, products, launch.bytes / model.bytes_per_s
        )

    def floor_s(self, launch: Launch) -> float:
        """Seconds that nothing on an H200 can beat."""
        return max(launch.bytes / 4.8e12, self.flops * math.prod(launch.grid) / 790e12)


def compile_launch(launch: Launch, capability: int) -> Compiled:
    """Compile a launch's kernel for GPUs of this capability (90, 80, ...) and read its machine code."""
    types, constants, aligned = launch.signature()
    names = launch.kernel.arg_names
    source = ASTSource(
        fn=launch.kernel,
        signature=types,
        constexprs={(names.index(name),): value for name, value in constants.items()},
        attrs={(names.index(name),): [["tt.divisibility", 16]] for name in aligned},
    )
    built = triton.compile(source, target=GPUTarget("cuda", capability, 32), options=launch.options)
    usage = _of_cubin("cuobjdump", built.asm["cubin"], "--dump-resource-usage")
    warps, shared = built.metadata.num_warps, built.metadata.shared
    used = int(re.search(r"REG:(\d+)", usage)[1])
    code = list(machine_code(_of_cubin("nvdisasm", built.asm["cubin"]), trips(launch)))
    chip = CHIPS[capability]
    return Compiled(
        registers=used,
        spilled_bytes=int(re.search(r"STACK:(\d+)", usage)[1]),
        shared_bytes=shared,
        warps=warps,
        programs=min(
            REGISTERS_OF_A_PROCESSOR // (-(-used // 8) * 8 * 32 * warps),
            chip.shared_bytes // (shared + RESERVED_SHARED_BYTES),
            chip.warps // warps,
            chip.programs,
        ),
        widths=dict(sorted(access_widths(code).items(), reverse=True)),
        instructions=sum(times for _, times in code),
        matrix_instructions=sum(times for name, times in code if matrix_flops(name)),
        flops=warps * sum(times * matrix_flops(name) for name, times in code),
    )


def trips(launch: Launch) -> list[int]:
    """How often each loop is passed, outermost first; one known to be passed once is no loop any more."""
    arguments, names = launch.arguments, LOOPS.get(launch.name, ())
    once = {name for name in names if name.isupper() and arguments[name] == 1}
    once |= {"chunks"} if not arguments.get("CHUNKED", True) else set()
    return [arguments[name] for name in names if name not in once]


def machine_code(listing: str, passes: list[int]) -> Iterator[tuple[str, int]]:
    """Instructions of a listing by nvdisasm, each with the times that a warp issues it.

    A backward jump ends a loop; loops deeper than `passes` and slow paths count once.
    """
    labels, instructions, loops = {}, [], {}
    for line in listing.splitlines():
        if label := re.match(r"\s*(\.L_x_\d+):", line):
            labels[label[1]] = len(instructions)
        elif match := re.match(r"\s*/\*[0-9a-f]{4,}\*/\s+(?:@!?\w+ )?\s*([A-Z][\w.]*)(.*)", line):
            if match[1] == "NOP":
                continue
            jump = re.search(r"`\((\.L_x_\d+)\)", match[2]) if match[1].startswith("BRA") else None
            if jump and jump[1] in labels and labels[jump[1]] < len(instructions):
                first = labels[jump[1]]
                loops[first] = len(instructions)
            instructions.append(match[1])
    for at, name in enumerate(instructions):
        depth = sum(first <= at <= last for first, last in loops.items())
        yield name, math.prod(passes[:depth])


def access_widths(code: list[tuple[str, int]]) -> Counter[int]:
    """Accesses of global memory by the bytes of a thread."""
    widths: Counter[int] = Counter()
    for name, times in code:
        kind, *details = name.split(".")
        if kind in ("LDG", "STG", "LDGSTS"):
            sizes = {"128": 16, "64": 8, "U16": 2, "S16": 2, "U8": 1, "S8": 1}
            widths[next((sizes[word] for word in details if word in sizes), 4)] += times
    return widths


def matrix_flops(name: str) -> int:
    """Floating-point operations of a warp's matrix instruction, of others none."""
    if match := re.match(r"HMMA\.16(8|16)(4|8|16)\b", name):  # 16 x 8 x k, written as 16816
        return 2 * 16 * 8 * int(match[2])
    if match := re.match(r"HGMMA\.64x(\d+)x(\d+)\.", name):  # a group of four warps
        return 2 * 16 * int(match[1]) * int(match[2])
    return 0


def _of_cubin(program: str, cubin: bytes, *options: str) -> str:
    tool = Path(triton.__file__).parent / "backends/nvidia/bin" / program
    with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
        file.write(cubin)
        file.flush()
        return subprocess.run([tool, *options, file.name], capture_output=True, text=True, check=True).stdout


Cache = dict[tuple[object, ...], Compiled]


def report(preset: str, batch: int, dtype: str, kind: str, capability: int, cache: Cache) -> list[str]:
    """Print the launches of a step and what they compile to; return the bars that it misses."""
    chip = CHIPS[capability]
    launches, shallow = (
        STEPS[kind](denoiser(preset, DTYPES[dtype], depth), batch, chip.plan) for depth in (None, 1)
    )
    blocks = denoiser(preset, DTYPES[dtype]).config.depth
    per_block = (len(launches) - len(shallow)) / (blocks - 1)
    print(f"\n{kind} step of {preset}, batch {batch}, {dtype}, sm_{capability} ({chip.name}): ", end="")
    print(f"{len(launches)} launches, {per_block:.1f} per block")
    print(
        f"{'times':>5} {'kernel':24} {'programs':>8} {'warps':>5} {'regs':>4} {'spilled':>7} {'shared':>7} "
        f"{'at once':>7} {'instr.':>7} {'matrix':>6} {'MB':>7} {'GFLOP':>7} {'us each':>8} {'floor':>6}  "
        "accesses by bytes"
    )
    missed, model, total_s, floor_s = [], Model(), 0.0, 0.0
    groups: dict[tuple[object, ...], list[Operator | Launch]] = {}
    for launch in launches:
        if isinstance(launch, Launch):
            group = (launch.key(), launch.grid)
        else:
            group = (launch.name, *(tensor.shape for tensor in launch.tensors))
        groups.setdefault(group, []).append(launch)
    other = Counter()
    for group in groups.values():
        launch, count = group[0], len(group)
        if isinstance(launch, Operator):
            seconds, floor = launch.seconds(model), launch.floor_s()
            if launch.name in PRODUCTS:
                shape = "x".join(map(str, launch.tensors[-1].shape))
                print(
                    f"{count:5} {launch.name + ' ' + shape:24} {'':54} {launch.bytes / 1e6:7.1f} "
                    f"{launch.flops / 1e9:7.2f} {seconds * 1e6:8.1f} {floor * 1e6:6.1f}"
                )
            else:
                other["launches"] += count
                other["bytes"] += count * launch.bytes
                other["seconds"] += count * seconds
        else:
            key = (*launch.key(), capability)
            built = cache.get(key) or cache.setdefault(key, compile_launch(launch, capability))
            seconds, floor = built.seconds(launch, model), built.floor_s(launch)
            programs = math.prod(launch.grid)
            widths = " ".join(f"{width}:{times}" for width, times in built.widths.items())
            print(
                f"{count:5} {launch.name:24} {programs:8} {built.warps:5} {built.registers:4} "
                f"{built.spilled_bytes:7} {built.shared_bytes:7} {built.programs:7} {built.instructions:7} "
                f"{built.matrix_instructions:6} {launch.bytes / 1e6:7.1f} "
                f"{built.flops * programs / 1e9:7.2f} {seconds * 1e6:8.1f} {floor * 1e6:6.1f}  {widths}",
                flush=True,
            )
            forward = kind == "sampling" and dtype == "bf16"
            if forward and built.spilled_bytes:
                missed.append(f"{launch.name} spills {built.spilled_bytes} bytes of a thread")
            if forward and launch.name == "scan_forward" and built.programs < MIN_SCAN_PROGRAMS:
                missed.append(
                    f"{launch.name}: {built.programs} programs of a multiprocessor at once, "
                    f"not {MIN_SCAN_PROGRAMS}"
                )
        total_s += count * (seconds + model.gap_s)
        floor_s += count * floor
    print(
        f"{other['launches']:5} {'other operators':24} {'':54} {other['bytes'] / 1e6:7.1f} {'':7} "
        f"{other['seconds'] * 1e6:8.1f} in all"
    )
    if kind == "sampling" and per_block > MAX_LAUNCHES_OF_A_BLOCK:
        missed.append(f"{per_block:.1f} launches per block, more than {MAX_LAUNCHES_OF_A_BLOCK}")
    if capability == 90:
        print(
            f"modelled: {total_s * 1e3:.3f} ms; its launches' floors together {floor_s * 1e3:.3f} ms", end=""
        )
        bar = MAX_TIMES_THE_FLOOR.get(batch)
        if kind == "sampling" and dtype == "bf16" and preset == "B" and bar:
            times = total_s / H200_FLOOR_S[batch]
            print(f"; {times:.2f} times the step's floor of {H200_FLOOR_S[batch] * 1e3:.3f} ms", end="")
            if times > bar:
                missed.append(f"{times:.2f} times the floor, more than {bar}")
        print()
    return [f"{kind}, batch {batch}, {dtype}, sm_{capability}: {bar}" for bar in missed]


def main() -> int:
    """Print the report; 1 if a bar is missed."""
    parser = argparse.ArgumentParser(
        prog="python -m tools.kernel_report", description=__doc__.splitlines()[0].partition(":")[0] + "."
    )
    parser.add_argument("--preset", default="B")
    parser.add_argument("--steps", nargs="+", choices=tuple(STEPS), default=tuple(STEPS))
    parser.add_argument("--dtypes", nargs="+", choices=tuple(DTYPES), default=tuple(DTYPES))
    parser.add_argument("--batches", nargs="+", type=int, default=(1, 32))
    parser.add_argument("--capabilities", nargs="+", type=int, choices=tuple(CHIPS), default=tuple(CHIPS))
    options = parser.parse_args()
    print(f"Triton {triton.__version__}, torch {torch.__version__}. Nothing was run on a GPU.")
    print(f"The model of times: {Model()}.")
    cache: Cache = {}
    missed = [
        line
        for capability in options.capabilities
        for dtype in options.dtypes
        for kind in options.steps
        for batch in options.batches
        for line in report(options.preset, batch, dtype, kind, capability, cache)
    ]
    print("\nbars missed: " + ("none" if not missed else "".join(f"\n  {line}" for line in missed)))
    return int(bool(missed))


if __name__ == "__main__":
    sys.exit(main())
