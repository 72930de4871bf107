"""Runs mamba-ssm's own Triton kernels on CPU tensors in Triton's interpreter, against the recurrence.

A program of its own, for TRITON_INTERPRET must be set before triton is imported. Prints one line of JSON per
case: {"length", "orders", "errors": {name: largest error over largest value}}. The stand-ins for the compiled
modules, which the kernels under test never call, live in this process alone.
"""

from __future__ import annotations

import contextlib
import json
import os
import sys
import types
from functools import partial

import torch

from benchmarks.support.scan_inputs import errors, output_and_gradients, random_inputs
from medsora.kernels import mamba2_scan, mamba_ssm_backend

CASES = [(1, 0), (3, 2), (4, 0), (32, 0), (47, 0), (48, 1), (300, 0)]  # length, orders
CHUNK = 64  # tokens; the interpreter's time grows with the padding to a chunk


def stand_in_for_a_gpu() -> None:
    """What the package asks of CUDA before it launches a kernel, answered for a CPU."""
    os.environ["TRITON_INTERPRET"] = "1"
    import triton

    for compiled in ("selective_scan_cuda", "causal_conv1d_cuda"):
        sys.modules[compiled] = types.ModuleType(compiled)
    mamba_ssm_backend.function_in_use = lambda: "mamba_chunk_scan_combined"
    mamba_ssm_backend.CHUNK = CHUNK
    torch.cuda.device = lambda _index: contextlib.nullcontext()
    torch.cuda.get_device_properties = lambda _device=None: types.SimpleNamespace(multi_processor_count=1)
    original = triton.autotune
    triton.autotune = lambda configs, key, **options: original(configs[:1], key, **options)


def package(*, orders: torch.Tensor | None, zxbcdt: torch.Tensor, **inputs: torch.Tensor) -> torch.Tensor:
    """The backend without the dispatch, which would decline CPU tensors."""
    if orders is None:
        orders = torch.arange(zxbcdt.shape[1])[None]
    return mamba_ssm_backend.scan(zxbcdt, **inputs, orders=orders[None, :, None], eps=1e-5)[0]


def check_a_token_that_is_not_finite() -> None:
    """Earlier tokens and other samples stay, with their gradients; the token and later ones are NaN."""
    inputs = random_inputs(9, batch=2, heads=2, headdim=16, d_state=16, orders=1, dtype=torch.float32)
    order, expected = inputs["orders"][0], output_and_gradients(package, inputs)
    for column in (32, 64, 80, -1):  # x, B, C, Δ
        broken = inputs | {"zxbcdt": inputs["zxbcdt"].clone()}
        broken["zxbcdt"][0, order[4], column] = torch.nan
        actual = output_and_gradients(package, broken)
        torch.testing.assert_close(actual["output"][0, order[:4]], expected["output"][0, order[:4]])
        torch.testing.assert_close(actual["output"][1], expected["output"][1])
        torch.testing.assert_close(actual["zxbcdt"][1], expected["zxbcdt"][1])
        assert actual["output"][0, order[4:]].isnan().all(), column


def main() -> None:
    stand_in_for_a_gpu()
    for length, orders in CASES:
        inputs = random_inputs(
            length, batch=1, heads=2, headdim=16, d_state=16, orders=orders, dtype=torch.float32
        )
        actual = output_and_gradients(package, inputs)
        expected = output_and_gradients(partial(mamba2_scan, backend="reference"), inputs)
        line = {"length": length, "orders": orders, "errors": errors(actual, expected)}
        print(json.dumps(line), flush=True)
    check_a_token_that_is_not_finite()


if __name__ == "__main__":
    main()
