"""benchmarks.support.reference_wiring, benchmarks.support.wirings: the re-creation of the public wiring: our
model's numbers at the cost that was counted on it.
"""

from __future__ import annotations

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from benchmarks.kernels import kept_bytes
from benchmarks.support.reference_wiring import ReferenceWiring
from benchmarks.support.wirings import cast
from medsora import MedSora
from tests.support.awake import awake


def test_it_gives_the_numbers_of_our_mixed_model_with_gradients() -> None:
    model = awake(MedSora.from_preset("tiny", in_channels=4, depth=2, mixing="mixed", dropout=0.0))
    z, t = torch.randn(2, 3, 4, 16, 8), torch.tensor([3, 700])
    ours, theirs = model(z, t), ReferenceWiring(model)(z, t)
    torch.testing.assert_close(theirs.eps, ours.eps, atol=1e-4, rtol=1e-4)
    torch.testing.assert_close(theirs.variance, ours.variance, atol=1e-4, rtol=1e-4)
    for mine, public in zip(ours.features, theirs.features, strict=True):
        torch.testing.assert_close(public, mine, atol=1e-4, rtol=1e-4)
    weights = list(model.parameters())
    pairs = zip(
        torch.autograd.grad(ours.eps.square().sum() + ours.variance.sum(), weights),
        torch.autograd.grad(theirs.eps.square().sum() + theirs.variance.sum(), weights),
        strict=True,
    )
    for mine, public in pairs:
        torch.testing.assert_close(public, mine, atol=1e-3 * float(mine.abs().max()) + 1e-6, rtol=1e-3)


def test_its_forward_of_B_costs_60_9_gflop() -> None:
    with torch.device("meta"):
        model = MedSora.from_preset("B", mixing="mixed", backend="torch").eval()
    z, t = torch.zeros(1, 6, 16, 16, 16, device="meta"), torch.zeros(1, device="meta")
    counter = FlopCounterMode(display=False)
    with counter, torch.no_grad():
        ReferenceWiring(model)(z, t)
    assert counter.get_total_flops() / 1e9 == pytest.approx(60.9, abs=0.05)


def test_half_as_much_is_kept_for_the_gradients() -> None:
    model = awake(MedSora.from_preset("B", depth=2, mixing="mixed", dropout=0.0, backend="torch"))
    z, t = torch.randn(1, 6, 16, 16, 16), torch.tensor([500])
    ours = kept_bytes(model.parameters(), lambda: model(z, t).eps.sum())
    theirs = kept_bytes(model.parameters(), lambda: ReferenceWiring(model)(z, t).eps.sum())
    assert ours <= 0.5 * theirs


def test_half_precision_and_autocast_are_as_exact_as_ours() -> None:
    model = awake(MedSora.from_preset("tiny", in_channels=4, depth=2, mixing="mixed", dropout=0.0)).eval()
    z, t = torch.randn(2, 3, 4, 16, 8), torch.tensor([3, 700])
    exact = model(z, t).eps
    for half in (False, True):
        if half:
            z = z.to(cast(model, torch.bfloat16).dtype)
        with torch.autocast("cpu", torch.bfloat16, enabled=not half):
            errors = [
                float((form(z, t).eps.float() - exact).norm() / exact.norm())
                for form in (model, ReferenceWiring(model))
            ]
        assert 0 < errors[1] < 2 * errors[0] < 0.1
