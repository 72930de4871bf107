"""Semantic-aware token masking: rates from variances, as released and by whole groups."""

from __future__ import annotations

import torch

from medsora.baselines.endogen import EndoGen
from medsora.baselines.endogen.masking import drop_rates, semantic_mask


def test_rates_fall_with_the_unbiased_variance_per_channel() -> None:
    torch.manual_seed(0)
    groups = torch.randn(2, 3, 8, 5, dtype=torch.float64)
    variances = torch.stack([((g - g.mean(0)) ** 2).sum(0) / 7 for g in groups.flatten(0, 1)]).view(2, 3, 5)
    largest = torch.stack([variances[:, group].max() for group in range(3)])
    expected = 0.3 * (1 - variances / largest[:, None])
    torch.testing.assert_close(drop_rates(groups, 0.3).double(), expected, rtol=1e-6, atol=1e-6)
    assert (drop_rates(groups, 0.3).amin(dim=(0, 2)) == 0).all()


def test_a_constant_sequence_is_dropped_at_the_largest_rate() -> None:
    assert torch.equal(drop_rates(torch.ones(1, 1, 8, 4), 0.3), torch.full((1, 1, 4), 0.3))


def test_entries_are_zeroed_one_by_one_and_not_rescaled() -> None:
    torch.manual_seed(0)
    x = torch.randn(4, 1 + 64 + 7, 256) + 3
    masked = semantic_mask(x, 8, 0.3)
    kept = masked == x
    assert ((masked == 0) | kept).all()
    assert kept[:, 0].all()
    assert kept[:, -7:].all()
    dropped = (~kept[:, 1:-7]).float()
    assert 0.15 < dropped.mean() < 0.25  # about 0.2 on noise
    rates = drop_rates(x[:, 1:-7].unflatten(1, (8, 8)), 0.3)
    by_rate = rates[:, :, None].expand(-1, -1, 8, -1).flatten(1, 2)
    for low, high in ((0.1, 0.2), (0.2, 0.3)):
        chosen = (by_rate >= low) & (by_rate < high)
        assert abs(dropped[chosen].mean() - by_rate[chosen].mean()) < 0.01


def test_whole_groups_are_dropped_or_kept_together() -> None:
    torch.manual_seed(0)
    x = torch.randn(64, 1 + 32, 16)
    kept = (semantic_mask(x, 8, 0.3, whole_groups=True) == x)[:, 1:].unflatten(1, (4, 8))
    assert (kept.all((2, 3)) | ~kept.any(-1).any(-1)).all()
    assert 0.1 < (~kept.all((2, 3))).float().mean() < 0.3


def test_only_training_masks() -> None:
    torch.manual_seed(0)
    sizes = {"num_codes": 9, "rows": 3, "cols": 8, "width": 8, "depth": 1, "heads": 1, "hidden": 8}
    model = EndoGen(**sizes, dropout=0.0)
    torch.nn.init.normal_(model.output.weight)
    codes = torch.randint(9, (2, 23))
    assert torch.equal(model.eval()(codes), model(codes))
    evaluated = model(codes)
    model.train()
    assert not torch.allclose(model(codes), evaluated)
    assert torch.equal(model(codes[:, :6]), model.eval()(codes[:, :6]))  # no full group
