"""The matrix form equals the recurrence: outputs and every gradient, in float64, at awkward lengths."""

from __future__ import annotations

import math
from functools import partial

import pytest
import torch

from benchmarks.support.scan_inputs import (
    assert_close,
    in_float64,
    of_steps,
    output_and_gradients,
    random_inputs,
)
from medsora.kernels import mamba2_scan
from medsora.kernels.matrix import scan as ssd

LENGTHS = (1, 3, 4, 32, 47, 48, 300)
WIDE = {
    "heads": 4,
    "headdim": 32,
    "d_state": 32,
}  # gradients of the few-valued weights do not cancel to nothing

STEPS = (1e-3, 1.0, 100.0, None)  # None: small ones after large ones


def narrow(length: int) -> dict[str, int]:
    size = 16 if length <= 500 else 2
    return {"heads": size // 4 or 1, "headdim": size, "d_state": size}


reference = partial(mamba2_scan, backend="reference")
matrix = partial(mamba2_scan, backend="torch")


@pytest.mark.parametrize("length", LENGTHS)
@pytest.mark.parametrize("orders", [0, 2])
def test_equals_reference_in_float64(length: int, orders: int) -> None:
    inputs = random_inputs(length, orders=orders)
    expected = output_and_gradients(reference, inputs)
    assert_close(output_and_gradients(matrix, inputs), expected, 1e-11)


@pytest.mark.parametrize("length", [15, 16, 17, 31, 32, 33, 49])
def test_chunk_boundaries(length: int, monkeypatch: pytest.MonkeyPatch) -> None:
    inputs = random_inputs(length, orders=2)
    expected = output_and_gradients(reference, inputs)
    monkeypatch.setattr(ssd, "ONE_CHUNK", 16)
    monkeypatch.setattr(ssd, "CHUNK", 16)
    assert_close(output_and_gradients(matrix, inputs), expected, 1e-11)


@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float32, 1e-5), (torch.bfloat16, 2e-2)])
@pytest.mark.parametrize("length", [6, 48, 150])
def test_lower_precision(dtype: torch.dtype, tolerance: float, length: int) -> None:
    inputs = random_inputs(length, orders=2, dtype=dtype, batch=1, **WIDE)
    actual = output_and_gradients(matrix, inputs)
    assert actual["output"].dtype == dtype
    assert_close(actual, output_and_gradients(reference, in_float64(inputs)), tolerance)


@pytest.mark.parametrize("length", [48, 150])
@pytest.mark.parametrize(("A", "step"), [(1.0, 50.0), (1e4, -2.0), (1e4, 50.0), (16.0, -70.0)])
def test_float32_is_exact_where_decays_and_steps_are_extreme(length: int, A: float, step: float) -> None:
    inputs = random_inputs(length, orders=2, dtype=torch.float32, batch=1, **WIDE)
    inputs["A_log"] = torch.full_like(inputs["A_log"], math.log(A))
    inputs["dt_bias"] = torch.full_like(inputs["dt_bias"], step)
    actual = output_and_gradients(matrix, inputs)
    expected = output_and_gradients(reference, in_float64(inputs))
    for sums_of_both_signs in ("dt_bias", "A_log"):
        assert actual.pop(sums_of_both_signs).isfinite().all()
    assert_close(actual, {name: expected[name] for name in actual}, 1e-4 if step > 10 else 1e-5)


@pytest.mark.parametrize("length", [1, 3, 47, 48, 63, 128, 500, 4096])
@pytest.mark.parametrize("step", STEPS)
@pytest.mark.parametrize("backend", ["reference", "torch"])
def test_float32_keeps_its_digits_whatever_the_steps(backend: str, step: float | None, length: int) -> None:
    if backend == "reference" and length > 63:
        pytest.skip("the recurrence is slow, and no step of it depends on the length")
    inputs = of_steps(step, random_inputs(length, dtype=torch.float32, batch=1, **narrow(length)))
    actual = output_and_gradients(partial(mamba2_scan, backend=backend), inputs)
    assert_close(actual, output_and_gradients(matrix, in_float64(inputs)), 2e-4)


@pytest.mark.parametrize("length", [5, 16, 48, 100, 150])
@pytest.mark.parametrize("decay", [8, 20, 100, None])
def test_small_steps_around_large_ones_keep_their_gradients(length: int, decay: int | None) -> None:
    """What a large step hands on is little; it must not be the difference of what its neighbours do."""
    for seed in range(5):
        inputs = random_inputs(
            length, dtype=torch.float32, batch=1, heads=2, headdim=16, d_state=16, seed=seed
        )
        inputs = of_steps(None, inputs)
        if decay is not None:
            inputs["A_log"] = torch.zeros(2)
            inputs["zxbcdt"][..., -2:] = -4.0
            inputs["zxbcdt"][:, 2::7, -2:] = decay
        actual = output_and_gradients(matrix, inputs)
        assert_close(actual, output_and_gradients(matrix, in_float64(inputs)), 2e-4)


@pytest.mark.parametrize("step", STEPS)
def test_a_compiled_scan_keeps_its_digits_too(step: float | None) -> None:
    """By the form that is compiled, of several chunks; tools.scan_digits compiles it by inductor."""
    inputs = of_steps(step, random_inputs(150, dtype=torch.float32, batch=1, **narrow(150)))
    compiled = torch.compile(matrix, backend="aot_eager")
    actual = output_and_gradients(compiled, inputs)
    assert_close(actual, output_and_gradients(matrix, in_float64(inputs)), 2e-4)


@pytest.mark.parametrize("step", STEPS)
def test_float64_of_large_steps_equals_the_recurrence(step: float | None) -> None:
    """What the test above takes for exact."""
    inputs = of_steps(step, random_inputs(70, batch=1, **narrow(70)))
    assert_close(output_and_gradients(matrix, inputs), output_and_gradients(reference, inputs), 1e-9)


@pytest.mark.parametrize("backend", ["reference", "torch"])
@pytest.mark.parametrize("length", [1, 5, 140])
@pytest.mark.parametrize("number", [math.nan, math.inf, -math.inf])
def test_a_token_that_is_not_finite_reaches_no_earlier_one(backend: str, length: int, number: float) -> None:
    inputs = random_inputs(length, orders=1, dtype=torch.float32)
    forwards, step = inputs["orders"][0], length // 2
    for order in (forwards, forwards.flip(0)):
        expected = mamba2_scan(**inputs | {"orders": order[None]}, backend=backend)
        for column in (0, 16, 33, 40, 45):  # z, x, B, C, Δ
            tokens = inputs["zxbcdt"].clone()
            tokens[0, order[step], column] = number
            actual = mamba2_scan(**inputs | {"orders": order[None], "zxbcdt": tokens}, backend=backend)
            torch.testing.assert_close(actual[0, order[:step]], expected[0, order[:step]])
            torch.testing.assert_close(actual[1], expected[1])
            if column < 45 or number != -math.inf:  # Δ = 0 is a number like others
                assert not actual[0, order[step]].isfinite().all()


def test_a_compiled_scan_keeps_tokens_that_are_not_finite_from_earlier_ones_too() -> None:
    inputs = random_inputs(70, orders=1, dtype=torch.float32)
    order, expected = inputs["orders"][0], matrix(**inputs)
    inputs["zxbcdt"][0, order[35], 16] = math.nan
    actual = torch.compile(matrix, backend="aot_eager")(**inputs)
    torch.testing.assert_close(actual[0, order[:35]], expected[0, order[:35]])
    torch.testing.assert_close(actual[1], expected[1])
    assert actual[0, order[35]].isnan().all()


@pytest.mark.parametrize("backend", ["reference", "torch"])
@pytest.mark.parametrize("length", [5, 140])
def test_a_token_that_is_not_finite_reaches_no_other_sequences_gradient(backend: str, length: int) -> None:
    inputs = random_inputs(2 * length, dtype=torch.float32)
    inputs["orders"] = torch.arange(2 * length).view(1, 1, 2, length)
    scan = partial(mamba2_scan, backend=backend)
    expected = output_and_gradients(scan, inputs)["zxbcdt"]
    inputs["zxbcdt"][0, length // 2, 16] = math.nan
    actual = output_and_gradients(scan, inputs)["zxbcdt"]
    torch.testing.assert_close(actual[0, length:], expected[0, length:])
    torch.testing.assert_close(actual[1], expected[1])


def test_large_gradients_stay_finite() -> None:
    inputs = random_inputs(48, orders=2, dtype=torch.float32)
    inputs["zxbcdt"].requires_grad_()
    (matrix(**inputs) * 1e20).sum().backward()
    assert inputs["zxbcdt"].grad.isfinite().all()


@pytest.mark.parametrize("length", [1, 5, 300])
def test_an_empty_batch(length: int) -> None:
    inputs = random_inputs(length, orders=2, dtype=torch.float32, batch=0, heads=4, headdim=4, d_state=8)
    inputs["zxbcdt"].requires_grad_()
    out = matrix(**inputs)
    assert out.shape == (0, length, 16)
    out.sum().backward()
    assert inputs["zxbcdt"].grad.shape == inputs["zxbcdt"].shape


def test_compiles_for_sizes_that_change() -> None:
    """Once for all lengths of as many chunks; one symbol is a tenth of the time of one for every size."""
    compiled = torch.compile(matrix, backend="aot_eager")
    for length, stance in ((151, "default"), (172, "fail_on_recompile")):
        inputs = random_inputs(length, orders=1)
        for name in ("zxbcdt", "orders"):
            torch._dynamo.maybe_mark_dynamic(inputs[name], 1)
        with torch.compiler.set_stance(stance):
            torch.testing.assert_close(compiled(**inputs), matrix(**inputs))


def test_bfloat16_tokens_with_float32_weights_under_autocast() -> None:
    inputs = random_inputs(48, orders=2, dtype=torch.float32, **WIDE)
    inputs["zxbcdt"] = inputs["zxbcdt"].bfloat16()
    expected = output_and_gradients(reference, inputs | {"zxbcdt": inputs["zxbcdt"].float()})
    with torch.autocast("cpu", dtype=torch.bfloat16):
        actual = output_and_gradients(matrix, inputs)
    assert actual["output"].dtype == torch.bfloat16
    assert actual["A_log"].dtype == torch.float32
    assert_close(actual, expected, 2e-2)


def test_conv_weight_may_have_the_shape_of_conv1d() -> None:
    inputs = random_inputs(5)
    expected = matrix(**inputs)
    inputs["conv_weight"] = inputs["conv_weight"].unsqueeze(1)
    assert torch.equal(matrix(**inputs), expected)


def test_orders_may_be_int32_and_tokens_a_strided_view() -> None:
    inputs = random_inputs(12, orders=2)
    expected = output_and_gradients(matrix, inputs)
    inputs["orders"] = inputs["orders"].int()
    wide = torch.stack([inputs["zxbcdt"]] * 2, dim=-1)
    assert_close(
        output_and_gradients(lambda zxbcdt, **rest: matrix(zxbcdt=wide[..., 0] + 0 * zxbcdt, **rest), inputs)
        | {"zxbcdt": expected["zxbcdt"]},
        expected,
        1e-12,
    )


@pytest.mark.parametrize("backend", ["reference", "torch"])
def test_causal_in_scan_order(backend: str) -> None:
    inputs = random_inputs(200, orders=1)
    order = inputs["orders"][0]
    before = mamba2_scan(**inputs, backend=backend)
    inputs["zxbcdt"] = inputs["zxbcdt"].clone()
    inputs["zxbcdt"][:, order[150]] += 1
    after = mamba2_scan(**inputs, backend=backend)
    assert torch.equal(before[:, order[:150]], after[:, order[:150]])
    assert not torch.allclose(before[:, order[150:160]], after[:, order[150:160]])


@pytest.mark.parametrize("backend", ["reference", "torch"])
@pytest.mark.parametrize("along_rows", [True, False])
def test_a_grid_is_scanned_line_by_line_without_being_rearranged(backend: str, along_rows: bool) -> None:
    frames, rows, cols = 3, 4, 5
    inputs = random_inputs(frames * rows * cols)
    scan = partial(mamba2_scan, backend=backend)
    grid = inputs["zxbcdt"].view(2, frames, rows, cols, -1)
    lines = grid.transpose(1, 2) if along_rows else grid.permute(0, 3, 1, 2, 4)  # (b, S, f, side, P)
    order = torch.randperm(lines.shape[2] * lines.shape[3])
    spirals = torch.stack((order, order.flip(0)))
    rearranged = lines.flatten(2, 3).flatten(0, 1)
    expected = scan(**inputs | {"zxbcdt": rearranged, "orders": spirals}).unflatten(0, lines.shape[:2])

    numbers = torch.arange(frames * rows * cols).view(frames, rows, cols)
    numbers = (numbers.transpose(0, 1) if along_rows else numbers.permute(2, 0, 1)).flatten(1)  # (S, l)
    orders = numbers[:, spirals].transpose(0, 1)[None]  # (1, k, S, l)
    actual = scan(**inputs | {"orders": orders.int()})
    assert actual.shape == (1, *inputs["zxbcdt"].shape[:2], 16)
    torch.testing.assert_close(actual[0][:, numbers], expected)


def test_axes_are_scanned_side_by_side_with_their_gradients() -> None:
    inputs = random_inputs(24)
    orders = torch.stack([torch.randperm(24) for _ in range(6)]).view(2, 3, 4, 6)
    inputs["orders"] = orders
    expected = output_and_gradients(reference, inputs)
    assert expected["output"].shape == (2, 2, 24, 16)
    assert_close(output_and_gradients(matrix, inputs), expected, 1e-11)
    alone = [matrix(**inputs | {"orders": axis[None]})[0] for axis in orders]
    torch.testing.assert_close(torch.stack(alone), expected["output"])


@pytest.mark.parametrize("backend", ["reference", "torch"])
def test_orders_are_summed_in_place(backend: str) -> None:
    inputs = random_inputs(48)
    reverse = torch.arange(47, -1, -1)
    scan = partial(mamba2_scan, backend=backend)
    forward = scan(**inputs)
    flipped = scan(**inputs | {"zxbcdt": inputs["zxbcdt"].flip(1)}).flip(1)
    both = scan(**inputs | {"orders": torch.stack([torch.arange(48), reverse])})
    torch.testing.assert_close(both, forward + flipped)


def test_gradients_stay_finite_where_the_state_dies_at_once() -> None:
    inputs = random_inputs(300, orders=2, dtype=torch.float32)
    inputs["dt_bias"] = torch.full_like(inputs["dt_bias"], 20.0)
    inputs["A_log"] = torch.full_like(inputs["A_log"], 3.0)
    for name, value in output_and_gradients(matrix, inputs).items():
        assert value.isfinite().all(), name


def test_cost_is_linear_beyond_a_chunk() -> None:
    from torch.utils.flop_counter import FlopCounterMode

    def flops(length: int) -> int:
        inputs = random_inputs(length, batch=1, dtype=torch.float32)
        with FlopCounterMode(display=False) as counter:
            matrix(**inputs)
        return counter.get_total_flops()

    assert flops(32 * ssd.CHUNK) == 8 * flops(4 * ssd.CHUNK)
