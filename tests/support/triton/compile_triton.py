"""Compiles the fused kernels for an H100/H200 on a machine without one; prints what each takes, as JSON.

    python -m tests.support.triton.compile_triton --d-state 128 --headdim 64 --heads 16 --tile 64 --dtype bf16

The registers and spilled bytes that it prints are what tuning starts from.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import subprocess
import tempfile

import torch
import triton
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource

from medsora.kernels.fused import backward as triton_backward
from medsora.kernels.fused import block as triton_block
from medsora.kernels.fused import forward as triton_forward
from medsora.kernels.fused.ops import SIZES
from medsora.kernels.fused.plan import (
    MAX_TILE_STEPS,
    attention_tile,
    attention_warps,
    chunked_tile,
    shared_bytes,
)
from medsora.kernels.fused.scan import MANY_STEPS, MIN_GROUPS

HOPPER = 90
DTYPES = {"bf16": torch.bfloat16, "fp16": torch.float16, "fp32": torch.float32}
OF_HEADS = ("dt_bias", "A_log", "D", "delta", "states", "mean_square")
FLOAT32 = (*OF_HEADS, "conv_weight", "conv_bias", "norm_weight", "cos", "sin")
FLOAT32_SUMS = ("grad_dt", "grad_heads", "grad_weight", "grad_taps")
TABLES = ("orders", "inverse_orders")
STRIDES = ("batch_stride", "token_stride", "features", "sample_stride", "frame_stride")
COUNTS = (*SIZES, "frames", "length", "count")


def compile_kernel(
    kernel, dtype: str, constants: dict[str, int | bool], warps: int, capability: int
) -> dict[str, object]:
    """Compile one kernel with pointers and strides that divide by 16; registers and spills by ptxas."""

    def kind(name: str) -> str:
        if name in constants:
            return "constexpr"
        if name in FLOAT32 + FLOAT32_SUMS:
            return "*fp32"
        if name in TABLES:
            return "*i32"
        if name in ("eps", "log2_scale"):
            return "fp32"
        return "i32" if name in STRIDES + COUNTS else f"*{dtype}"

    names = kernel.arg_names
    signature = {name: kind(name) for name in names}
    aligned = [i for i, name in enumerate(names) if signature[name].startswith("*") or name in STRIDES]
    source = ASTSource(
        fn=kernel,
        signature=signature,
        constexprs={(names.index(name),): value for name, value in constants.items()},
        attrs={(i,): [["tt.divisibility", 16]] for i in aligned},
    )
    compiled = triton.compile(
        source, target=GPUTarget("cuda", capability, 32), options={"num_warps": warps, "num_stages": 1}
    )
    return {
        "kernel": kernel.__name__,
        "chunked": constants.get("CHUNKED", False),
        "cubin_bytes": len(compiled.asm["cubin"]),
        "shared_bytes": compiled.metadata.shared,
        **registers(compiled.asm["ptx"], capability),
    }


def registers(ptx: str, capability: int) -> dict[str, int]:
    """Registers per thread and bytes spilled, as the assembler that ships with triton reports them."""
    architecture = f"{capability}a" if capability >= HOPPER else str(capability)
    assembler = os.path.join(os.path.dirname(triton.__file__), "backends", "nvidia", "bin", "ptxas")
    with tempfile.NamedTemporaryFile("w", suffix=".ptx") as file:
        file.write(ptx)
        file.flush()
        report = subprocess.run(
            [assembler, "-v", f"--gpu-name=sm_{architecture}", file.name, "-o", os.devnull],
            capture_output=True,
            text=True,
        ).stderr
    used = re.search(r"Used (\d+) registers", report)
    spilled = re.search(r"(\d+) bytes spill stores", report)
    return {"registers": int(used[1]), "spilled_bytes": int(spilled[1])} if used and spilled else {}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--d-state", type=int, default=16)
    parser.add_argument("--headdim", type=int, default=32)
    parser.add_argument("--heads", type=int, default=2)
    parser.add_argument("--heads-at-once", type=int, default=1)
    parser.add_argument("--tile", type=int, default=32)
    parser.add_argument("--warps", type=int, help="of a program (default: as it is launched)")
    parser.add_argument("--chunked", action="store_true", help="the kernels of long sequences alone")
    parser.add_argument("--attention", action="store_true", help="the attention kernels alone")
    parser.add_argument("--dtype", choices=tuple(DTYPES), default="bf16")
    parser.add_argument("--capability", type=int, default=HOPPER, help="80, 89, ... (default: Hopper's 90)")
    args = parser.parse_args()

    d_inner, block_n = args.heads * args.headdim, triton.next_power_of_2(args.d_state)
    of_heads = {"HEADS": args.heads, "HEADDIM": args.headdim, "D_STATE": args.d_state, "SPLIT": 1}
    scan = {
        **of_heads,
        "BLOCK_N": block_n,
        "Q": args.tile,
        "PACKED": 1,
        "HEADS_AT_ONCE": args.heads_at_once,
        "EXACT": args.dtype == "fp32",
    }
    one_tile = scan | {"CHUNKED": False, "SLICE": min(64, block_n)}
    many_chunks = scan | {"CHUNKED": True, "SLICE": block_n}
    sampling, training = (
        many_chunks | {"Q": chunked_tile(DTYPES[args.dtype], backward=backward)} for backward in (False, True)
    )
    conv_of_orders = {name: scan[name] for name in (*of_heads, "EXACT")}
    runs = {"GROUPS": MIN_GROUPS, "GROUP": MANY_STEPS[0] // MIN_GROUPS}
    conv_of_orders |= {"WIDTH": 4, "ACTIVATED": True, **runs}
    norm = {"DI": d_inner, "BLOCK_D": triton.next_power_of_2(d_inner), "DIRECTIONS": 2}
    conv = {"DI": d_inner, "D_STATE": args.d_state, "WIDTH": 4, "TAP_ROWS": 8, "BLOCK_T": 32}
    attention = {"HEADS": args.heads, "FEATURES": args.headdim, "WINDOW": 8}
    attention |= {"BLOCK_F": args.headdim, "BLOCK_HALF": max(16, args.headdim // 2)}
    old = args.capability < HOPPER
    attention_spread = attention_warps(DTYPES[args.dtype], before_hopper=old)
    short, long = (
        attention
        | dict(zip(("QUERIES", "KEYS"), attention_tile(length, 8, small=old), strict=True))
        | {"BEFORE": before}
        for length, before in ((16 if old else MAX_TILE_STEPS, 0), (MAX_TILE_STEPS + 1, 8))
    )
    kernels = [
        (triton_forward.conv_forward, conv_of_orders),
        (triton_forward.scan_forward, one_tile | {"KEEP_STATES": False, "ACTIVATED": True, "GATED": False}),
        (triton_forward.scan_forward, one_tile | {"KEEP_STATES": False, "ACTIVATED": True, "GATED": True}),
        (triton_forward.scan_forward, sampling | {"KEEP_STATES": False, "ACTIVATED": True, "GATED": False}),
        (triton_forward.scan_forward, training | {"KEEP_STATES": True, "ACTIVATED": False, "GATED": False}),
        (triton_forward.norm_forward, norm | {"EXACT": scan["EXACT"]}),
        (triton_backward.norm_backward, norm | {"AXES": 2}),
        (triton_backward.scan_backward, one_tile),
        (triton_backward.scan_backward, training),
        (
            triton_backward.conv_backward,
            conv | {"HEAD_BLOCKS": 2, "ALL_ORDERS": 4, "BLOCK_C": min(64, args.headdim)},
        ),
        (
            triton_block.add_norm_kernel,
            {
                "WIDTH": d_inner,
                "BLOCK": norm["BLOCK_D"],
                "ADDS": True,
                "AFFINE": True,
                "SHARES": args.heads,
                "BLOCK_SHARES": triton.next_power_of_2(args.heads),
            },
        ),
        (triton_block.gated_sum_kernel, {"BLOCK": triton_block.ELEMENTS, "UNIT": triton_block.UNIT}),
        (triton_block.local_attention_kernel, short),
        (triton_block.local_attention_kernel, long),
    ]
    for kernel, constants in kernels:
        chunked = constants.get("CHUNKED", False)
        attends = kernel is triton_block.local_attention_kernel
        if (args.chunked and not chunked) or (args.attention and not attends):
            continue
        many_registers = kernel is triton_backward.scan_backward or args.dtype == "fp32"
        spread = chunked or (many_registers and "Q" in constants and args.tile > MAX_TILE_STEPS // 2)
        warps = args.warps or (attention_spread if attends else 8 if spread else 4)
        steps = (MAX_TILE_STEPS + 1) if chunked else args.tile
        bound = shared_bytes(args.headdim, args.d_state, steps)
        line = compile_kernel(kernel, args.dtype, constants, warps, args.capability)
        print(json.dumps(line | {"shared_bound": bound}), flush=True)


if __name__ == "__main__":
    main()
