"""The loss of Eq. 14-15 against torchmetrics, its edges, its gradients, and the exact skip."""

from __future__ import annotations

import pytest
import torch
from torchmetrics.functional import pearson_corrcoef

from medsora.flow_prior import alignment_loss, needed
from medsora.flow_prior.alignment import dissimilarity

SHAPE = (3, 2, 5, 7)  # B, f, l, d


def blocks(count: int = 2, shape: tuple[int, ...] = SHAPE) -> list[torch.Tensor]:
    return [torch.randn(shape) for _ in range(count)]


def reference_r(feature: torch.Tensor, target: torch.Tensor) -> torch.Tensor:
    """1 - torchmetrics' correlation per dimension, of (K, d) against (K, d)."""
    return 1 - pearson_corrcoef(feature, target)


def test_per_sample_equals_torchmetrics_and_the_printed_formula():
    features, targets, t = blocks(), blocks(), torch.tensor([0, 4, 30])
    found = alignment_loss(features, targets, t)
    for b in range(3):
        r = torch.stack(
            [
                reference_r(x[b].flatten(0, 1), y[b].flatten(0, 1))
                for x, y in zip(features, targets, strict=True)
            ]
        )
        expected = (r.mean() / (t[b] + 1) - 0.01).clamp_min(0)
        torch.testing.assert_close(found.per_sample[b], expected, atol=1e-6, rtol=1e-5)
        torch.testing.assert_close(found.per_block[:, b], r.mean(dim=1), atol=1e-5, rtol=0)
    torch.testing.assert_close(found.loss, found.per_sample.mean())


def test_batch_equals_torchmetrics_over_all_tokens_with_the_mean_weight():
    features, targets, t = blocks(), blocks(), torch.tensor([0, 4, 30])
    found = alignment_loss(features, targets, t, correlation="batch")
    pairs = zip(features, targets, strict=True)
    r = torch.stack([reference_r(x.flatten(0, 2), y.flatten(0, 2)) for x, y in pairs])
    weight = (1 / (t + 1)).mean()
    torch.testing.assert_close(found.loss, (weight * r.mean() - 0.01).clamp_min(0), atol=1e-6, rtol=1e-5)
    assert found.per_sample.shape == (3,)
    assert found.per_block.shape == (2, 1)


def test_batch_and_sample_agree_on_one_sample():
    features, targets, t = blocks(shape=(1, 2, 5, 7)), blocks(shape=(1, 2, 5, 7)), torch.tensor([3])
    sample, batch = (alignment_loss(features, targets, t, correlation=kind) for kind in ("sample", "batch"))
    torch.testing.assert_close(sample.loss, batch.loss)


def test_correlation_is_over_tokens_per_dimension():
    target = torch.randn(1, 6, 4)
    scale, shift = torch.tensor([1.0, 9.0, 0.1, 3.0]), torch.tensor([5.0, -7.0, 0.0, 1.0])
    r = dissimilarity(target * scale + shift, target)
    torch.testing.assert_close(r, torch.zeros(1, 4), atol=1e-5, rtol=0)
    torch.testing.assert_close(dissimilarity(-target, target), torch.full((1, 4), 2.0), atol=1e-5, rtol=0)


@pytest.mark.parametrize("constant", [0.0, 3.7, -1e4, 1e-20])
@pytest.mark.parametrize("side", ["features", "targets", "both"])
def test_a_dimension_without_variance_has_r_one_and_no_gradient(constant, side):
    features, targets = torch.randn(2, 40, 3), torch.randn(2, 40, 3)
    for values in {"features": [features], "targets": [targets], "both": [features, targets]}[side]:
        values[..., 1] = constant
    features.requires_grad_()
    r = dissimilarity(features, targets)
    assert torch.equal(r[..., 1], torch.ones(2))
    r.sum().backward()
    assert torch.isfinite(features.grad).all()
    assert torch.equal(features.grad[..., 1], torch.zeros(2, 40))
    assert (features.grad[..., [0, 2]].abs().amax(dim=1) > 0).all()


def test_small_variation_on_a_large_offset_still_counts():
    wave = torch.linspace(0, 6, 64).sin().view(1, 64, 1)
    assert dissimilarity(1000 + wave, wave).item() < 0.01


def test_gradients_are_those_of_the_formula():
    features = torch.randn(2, 5, 3, dtype=torch.float64, requires_grad=True)
    targets = torch.randn(2, 5, 3, dtype=torch.float64)
    assert torch.autograd.gradcheck(lambda x: dissimilarity(x, targets), features)


def test_half_precision_features_are_compared_in_float32():
    features, targets = [torch.randn(SHAPE).bfloat16()], [torch.randn(SHAPE)]
    found = alignment_loss(features, targets, torch.zeros(3))
    wide = alignment_loss([features[0].float()], targets, torch.zeros(3))
    assert found.loss.dtype == torch.float32
    assert torch.equal(found.loss, wide.loss)


def test_needed_is_where_twice_g_exceeds_the_margin():
    t = torch.arange(1000)
    assert torch.equal(needed(t), t < 199)
    assert torch.equal(needed(t, 0.1), t < 19)
    assert needed(t, 0.0).all()
    assert not needed(t, 2.0).any()


@pytest.mark.parametrize("margin", [0.01, 0.02, 0.1, 0.25])
def test_what_is_not_needed_is_exactly_zero_even_at_the_worst_correlation(margin):
    t = torch.arange(1000)
    skipped = t[~needed(t, margin)]
    skipped = torch.cat([skipped, skipped[:1].expand(500)])  # the first has nothing to spare for rounding
    target = torch.randn(len(skipped), 2, 8, 1)  # one dimension: no averaging hides rounding beyond r = 2
    feature = (-target).clone().requires_grad_()
    found = alignment_loss([feature], [target], skipped, margin=margin)
    assert torch.equal(found.per_sample, torch.zeros(len(skipped)))
    found.loss.backward()
    assert torch.equal(feature.grad, torch.zeros_like(feature))


def test_the_last_needed_timestep_is_not_zero_at_the_worst_correlation():
    target = torch.randn(1, 2, 8, 16)
    assert alignment_loss([-target], [target], torch.tensor([198])).loss > 0


@pytest.mark.parametrize("timesteps", [[0, 500, 60, 199], [300, 999, 199, 700], [0, 1, 2, 3]])
def test_the_skip_changes_neither_loss_nor_gradients(timesteps):
    t, mask = torch.tensor(timesteps), needed(torch.tensor(timesteps))
    targets = blocks(3, (4, 2, 5, 7))
    features = [x.requires_grad_() for x in blocks(3, (4, 2, 5, 7))]

    full = alignment_loss(features, targets, t)
    expected = torch.autograd.grad(full.loss, features)
    given = [target[mask] for target in targets] if mask.any() else None
    skipped = alignment_loss(features, given, t, needed=mask)
    found = torch.autograd.grad(skipped.loss, features)

    torch.testing.assert_close(skipped.loss, full.loss, atol=1e-6, rtol=0)
    torch.testing.assert_close(skipped.per_sample, full.per_sample, atol=1e-6, rtol=0)
    for with_skip, without in zip(found, expected, strict=True):
        assert torch.equal(with_skip[~mask], torch.zeros_like(with_skip[~mask]))
        assert torch.equal(without[~mask], torch.zeros_like(without[~mask]))
        torch.testing.assert_close(with_skip[mask], without[mask], atol=1e-6, rtol=0)
        assert (with_skip[mask].abs().sum(dim=(1, 2, 3)) > 0).tolist() == [True] * int(mask.sum())


def test_the_mean_is_over_all_samples_not_over_the_needed_ones():
    feature, target = torch.randn(4, 2, 5, 7), torch.randn(1, 2, 5, 7)
    alone = alignment_loss([feature[:1]], [target], torch.tensor([0]))
    mask = torch.tensor([True, False, False, False])
    among_four = alignment_loss([feature], [target], torch.tensor([0, 500, 600, 700]), needed=mask)
    torch.testing.assert_close(among_four.loss, alone.loss / 4)


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        ({"targets": blocks(1)}, "2 blocks of features against 1 of targets"),
        (
            {"targets": blocks(2, (3, 2, 4, 7))},
            r"block 0: targets are \(3, 2, 4, 7\), expected \(3, 2, 5, 7\)",
        ),
        ({"targets": None}, r"targets are \(0, 2, 5, 7\), expected \(3, 2, 5, 7\)"),
        ({"needed": torch.tensor([True, False, True])}, r"targets are \(3, .*expected \(2, 2, 5, 7\)"),
        ({"t": torch.zeros(2)}, "expected one timestep for each of 3 samples"),
        ({"correlation": "token"}, "expected one of sample, batch"),
    ],
)
def test_what_does_not_belong_together_is_refused(change, sentence):
    arguments = {"features": blocks(), "targets": blocks(), "t": torch.zeros(3)} | change
    with pytest.raises(ValueError, match=sentence):
        alignment_loss(**arguments)


def test_batch_correlation_takes_no_skip():
    mask = torch.tensor([True, False, True])
    with pytest.raises(ValueError, match="takes those of all"):
        alignment_loss(blocks(), blocks(2, (2, 2, 5, 7)), torch.zeros(3), correlation="batch", needed=mask)
