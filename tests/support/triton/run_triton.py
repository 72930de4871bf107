"""Runs the fused kernels against the recurrence: on a GPU where there is one, else in Triton's interpreter.

A program of its own, for TRITON_INTERPRET must be set before triton is imported. All memory that the kernels
should write is filled with NaN beforehand. Prints one line of JSON per case: its name, tolerance, and the
largest error over the largest value of the output and of every gradient.
"""

from __future__ import annotations

import dataclasses
import json
import sys
from functools import partial
from unittest import mock

import torch

from benchmarks.support.scan_inputs import errors, in_float64, of_steps, output_and_gradients, random_inputs
from medsora.kernels import mamba2_scan
from tests.support.triton.interpreter import interpret_on_cpu

TOLERANCE = {torch.float32: 1e-5, torch.bfloat16: 2e-2, torch.float16: 4e-3}
# Gradients that are sums over all tokens of what cancels: in bf16 the torch backend is off by 2.7 %, too.
TIMES_THE_TOLERANCE = {"dt_bias": 2, "A_log": 2}


@dataclasses.dataclass(frozen=True)
class Case:
    """One scan: each of `axes` has `orders` orders, of `lines` sequences of `length` tokens."""

    length: int
    orders: int = 2
    dtype: torch.dtype = torch.float32
    lines: int = 1
    axes: int = 1
    batch: int = 1
    heads: int = 2
    headdim: int = 16
    d_state: int = 16
    step: float | str | None = None  # Δ of about this size, "mixed" of every size; None as a trained layer
    by_parts: bool = False  # the backward takes one sample of the batch at a time
    apart: bool = False  # the batch's samples farther apart in memory than 32 bits can count

    def inputs(self) -> dict[str, torch.Tensor]:
        inputs = random_inputs(
            self.length * self.lines,
            batch=self.batch,
            heads=self.heads,
            headdim=self.headdim,
            d_state=self.d_state,
            orders=self.axes * self.orders,
            dtype=self.dtype,
        )
        if self.step:
            inputs = of_steps(None if self.step == "mixed" else self.step, inputs)
        if self.axes * self.lines > 1:
            inputs["orders"] = inputs["orders"].view(self.axes, self.orders, self.lines, self.length)
        return inputs

    def placed(self, inputs: dict[str, torch.Tensor], device: str) -> dict[str, torch.Tensor]:
        """The inputs on the device, its tokens laid out as the case says."""
        inputs = {k: v.to(device) if torch.is_tensor(v) else v for k, v in inputs.items()}
        if self.apart:
            tokens = inputs["zxbcdt"]
            memory = torch.empty(2**31 + tokens[0].numel(), dtype=tokens.dtype, device=device)
            inputs["zxbcdt"] = memory.as_strided(tokens.shape, (2**31, *tokens.stride()[1:])).copy_(tokens)
        return inputs


CASES = [
    *(Case(length) for length in (1, 2, 31, 32, 33, 47, 48, 63, 64, 65)),
    Case(300, orders=1, heads=3),
    *(Case(length, dtype=torch.bfloat16) for length in (1, 2, 31, 32, 33, 47, 63, 64)),
    Case(300, orders=1, dtype=torch.bfloat16),
    *(Case(length, dtype=torch.bfloat16, heads=4) for length in (3, 48, 65)),
    Case(33, dtype=torch.float16, heads=4),
    Case(48, orders=1, dtype=torch.float16, batch=2, apart=True),
    Case(1025, orders=1, heads=1),
    *(Case(length, orders=1, step=step) for length in (3, 48, 70) for step in (1e-3, 1.0, 100.0, "mixed")),
    Case(64, orders=1, lines=3),  # over time, as long as it gets
    Case(33, orders=1, heads=2, headdim=128),  # each head computed as two
    Case(70, orders=1, heads=2, headdim=128, d_state=256),
    Case(70, orders=1, heads=2, headdim=128, d_state=48, dtype=torch.bfloat16),
    Case(66, orders=1, batch=3, by_parts=True),
    Case(70, orders=1, heads=1, headdim=32, d_state=128),
    Case(33, orders=1, heads=3, d_state=256),
    Case(6, orders=1, lines=11, batch=2),  # frames: several sequences to a tile, the last tile not full
    Case(20, lines=3, axes=2, heads=3, headdim=32, d_state=24),  # both axes at once, padded states
    Case(70, lines=2, orders=1, headdim=64, d_state=40),  # chunks of several lines
    Case(20, lines=3, axes=2, heads=3, headdim=32, d_state=24, dtype=torch.bfloat16),
]


def compare(case: Case, device: str) -> dict[str, float]:
    """Largest error over largest value, of the output and of every gradient, against float64."""
    from medsora.kernels.fused import scan as triton_ssd  # not before the interpreter is on

    inputs = case.inputs()
    expected = output_and_gradients(partial(mamba2_scan, backend="reference"), in_float64(inputs))
    inputs = case.placed(inputs, device)
    most = 1 if case.by_parts else triton_ssd.MAX_BACKWARD_BYTES
    torch.use_deterministic_algorithms(True, warn_only=True)  # fills new memory with NaN
    with mock.patch.object(triton_ssd, "MAX_BACKWARD_BYTES", most):
        actual = output_and_gradients(partial(mamba2_scan, backend="triton"), inputs)
    torch.use_deterministic_algorithms(False)
    return errors(actual, expected)


def check_an_empty_batch(device: str) -> None:
    """No samples: an output of none, and gradients of zero."""
    for length in (5, 70):
        inputs = Case(length, orders=1).inputs()
        inputs["zxbcdt"] = inputs["zxbcdt"][:0]
        inputs = {k: v.to(device) if torch.is_tensor(v) else v for k, v in inputs.items()}
        for name, value in output_and_gradients(partial(mamba2_scan, backend="triton"), inputs).items():
            expected = inputs["zxbcdt"][..., :32] if name == "output" else inputs[name]
            assert value.shape == expected.shape, name
            assert not value.any(), name


def check_a_token_that_is_not_finite(device: str) -> None:
    """Earlier tokens, other samples and their gradients stay; in one tile of two lines, and in chunks."""
    scan = partial(mamba2_scan, backend="triton")
    for case in (
        *(Case(9, lines=2, orders=1, batch=2, dtype=dtype) for dtype in TOLERANCE),
        Case(48, orders=1, batch=2, dtype=torch.bfloat16),
        *(Case(70, orders=1, batch=2, dtype=dtype) for dtype in TOLERANCE),
    ):
        inputs = case.placed(case.inputs(), device)
        order, step = inputs["orders"].flatten().long(), case.length // 2
        expected = scan(**inputs).view(2, -1, 32)[:, order]
        for column in (32, 64, 80, -1):  # x, B, C, Δ
            broken = inputs | {"zxbcdt": inputs["zxbcdt"].clone()}
            broken["zxbcdt"][0, order[step], column] = torch.nan
            actual = scan(**broken).view(2, -1, 32)[:, order]
            assert torch.equal(actual[0, :step], expected[0, :step]), column
            assert torch.equal(actual[0, case.length :], expected[0, case.length :]), column
            assert torch.equal(actual[1], expected[1]), column
            assert actual[0, step].isnan().all(), column
        of_others, others = (output_and_gradients(scan, tokens)["zxbcdt"][1] for tokens in (inputs, broken))
        assert torch.equal(others, of_others)


def check_registration(device: str) -> None:
    """The operators keep torch.library's promises; a compiled scan and its backward have no graph break."""
    from medsora.kernels.fused.scan import fused_scan, fused_scan_backward, gated_scan

    for case in (Case(5, lines=2, orders=1), Case(70, orders=1, heads=1)):  # one tile, several chunks
        inputs = case.inputs()
        orders = inputs.pop("orders").view(case.axes, case.orders, case.lines, case.length).int().to(device)
        headdim = inputs.pop("headdim")
        tensors = {name: value.to(device).requires_grad_() for name, value in inputs.items()}
        torch.library.opcheck(fused_scan, (*tensors.values(), orders, 1e-5))
        detached = [value.detach() for value in tensors.values()]
        torch.library.opcheck(gated_scan, (*detached, orders, 1e-5))
        scan = partial(mamba2_scan, orders=orders, headdim=headdim, backend="triton")
        torch._dynamo.reset()  # else the second case's weights are of unknown size
        compiled = torch.compile(scan, backend="aot_eager", fullgraph=True)
        out, expected = compiled(**tensors), scan(**tensors)
        torch.testing.assert_close(out, expected)
        leaves = list(tensors.values())
        for actual, wanted in zip(
            torch.autograd.grad(out.square().sum(), leaves),
            torch.autograd.grad(expected.square().sum(), leaves),
            strict=True,
        ):
            torch.testing.assert_close(actual, wanted)
        plain = [tensor.detach() for tensor in leaves]
        torch.library.opcheck(fused_scan_backward, (torch.ones_like(expected).detach(), *plain, orders, 1e-5))


def main() -> None:
    device = "cuda" if torch.cuda.is_available() else "cpu"
    if device == "cpu":
        interpret_on_cpu()
    for case in CASES:
        found = compare(case, device)
        tolerance = 2e-4 if case.step else TOLERANCE[case.dtype]
        worst = max(error / TIMES_THE_TOLERANCE.get(name, 1) for name, error in found.items())
        line = {"case": str(case), "tolerance": tolerance, "worst": worst, "errors": found}
        print(json.dumps(line), flush=True)
    check_an_empty_batch(device)
    check_a_token_that_is_not_finite(device)
    check_registration(device)
    print(json.dumps({"registration": "kept", "device": device}), flush=True)


if __name__ == "__main__":
    sys.exit(main())
