"""The alignment losses, Eq. 14-15 and Endora's: features against targets, by correlation over tokens."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from medsora.flow_prior.choices import CORRELATIONS


@dataclass(frozen=True)
class AlignmentLoss:
    """Output of `alignment_loss`.

    Attributes:
        loss: scalar, without the factor α of Eq. 17.
        per_sample: (B,) the hinged losses whose mean `loss` is.
        per_block: (L, B') detached r, mean over dimensions, for the samples that had targets; in [0, 2]. With
            `correlation="batch"` (L, 1).
    """

    loss: Tensor
    per_sample: Tensor
    per_block: Tensor


def _noise_weight(t: Tensor) -> Tensor:
    """Return g(t) = 1/(t+1): the noisier the latents, the less similar their features have to be.

    In float64 on a CPU; not every other device has it.
    """
    return 1 / (t.to(torch.float64 if t.device.type == "cpu" else torch.float32) + 1)


def needed(t: Tensor, margin: float = 0.01) -> Tensor:
    """Return which samples (B,) have a loss that is not provably zero, as bool.

    r of Eq. 14 is at most 2, so the hinge of Eq. 15 is zero, with its gradients, wherever 2·g(t) <= margin
    (t >= 199 at the default): no target has to be computed there.
    """
    return 2 * _noise_weight(t) > margin


def alignment_loss(
    features: Sequence[Tensor],
    targets: Sequence[Tensor] | None,
    t: Tensor,
    *,
    margin: float = 0.01,
    correlation: str = "sample",
    needed: Tensor | None = None,
) -> AlignmentLoss:
    """Compute Eq. 15: max(mean over blocks and dimensions of g(t)·r - margin, 0).

    Args:
        features: per block (B, f, l, d), the clip's tokens.
        targets: per block (B', f, l, d): for all samples, or for those that `needed` marks; None if it marks
            none.
        t: (B,) timesteps.
        correlation: "sample" takes K = f·l, hinges per sample and averages over all B samples; "batch" takes
            the paper's K = B·f·l with the batch's mean g(t), one hinge, and needs the targets of all samples.
        needed: (B,) bool, the samples that `targets` holds, in their order; the others' loss is zero, and so
            are their gradients. Default: all.

    Raises:
        ValueError: shapes that do not belong together, or an unknown `correlation`.
    """
    if correlation not in CORRELATIONS:
        raise ValueError(
            f"correlation {correlation!r} is unknown: expected one of {', '.join(CORRELATIONS)}."
        )
    samples = features[0].shape[0]
    rows = torch.arange(samples) if needed is None else needed.nonzero().squeeze(1)
    if features[0].device.type == "cuda" and rows.device.type == "cpu":
        rows = rows.pin_memory()  # the host need not wait for this copy
    rows = rows.to(features[0].device, non_blocking=True)
    if targets is None:
        targets = [feature.detach()[:0] for feature in features]
    _check(features, targets, t, len(rows))
    if correlation == "batch":
        if len(rows) < samples:
            raise ValueError(
                f"correlation 'batch' got targets of {len(rows)} of {samples} samples: it takes those of all."
            )
        return _batch_loss(features, targets, t, margin)

    # (L, B'): the mean over dimensions of every block is all that Eq. 15 takes from it.
    r = torch.stack(
        [
            dissimilarity(feature[rows].flatten(1, 2), target.flatten(1, 2)).mean(dim=-1)
            for feature, target in zip(features, targets, strict=True)
        ]
    )
    weight = _noise_weight(t.to(r.device))[rows].to(r.dtype)
    hinged = (weight * r.mean(dim=0) - margin).clamp_min(0)
    per_sample = r.new_zeros(samples).index_put((rows,), hinged)
    return AlignmentLoss(per_sample.mean(), per_sample, r.detach())


def _batch_loss(
    features: Sequence[Tensor], targets: Sequence[Tensor], t: Tensor, margin: float
) -> AlignmentLoss:
    """Eq. 14 as it is printed: one correlation over all tokens of all samples."""
    r = torch.stack(
        [
            dissimilarity(feature.flatten(0, 2), target.flatten(0, 2)).mean(dim=-1)
            for feature, target in zip(features, targets, strict=True)
        ]
    )
    weight = _noise_weight(t.to(r.device)).mean().to(r.dtype)
    loss = (weight * r.mean() - margin).clamp_min(0)
    return AlignmentLoss(loss, loss.expand(len(t)), r.detach().unsqueeze(1))


def image_alignment_loss(
    features: Sequence[Tensor],
    targets: Sequence[Tensor | None] | None,
    adapter: nn.Module,
    needed: Tensor | None = None,
    image_features: Sequence[Tensor] | None = None,
) -> AlignmentLoss:
    """Compute Endora's loss: the mean of 1 - r over layers and frames, equally at all noise levels.

    Every token of both sides becomes one number, the mean over its channels; r is Pearson's correlation over
    the tokens of a frame. A joint image counts as one more frame.

    Args:
        features: (B, f, l, d) of every spatial block.
        targets: per feature (B', n, D, 2h̄, 2w̄), the joint images last, or None where it is compared with
            nothing; None if `needed` marks no sample.
        adapter: the denoiser's, (N, D, 2h̄, 2w̄) -> (N, d, h̄, w̄).
        needed: (B,) bool, the samples that `targets` holds; the others' loss is zero. Default: all.
        image_features: (B, n - f, l, d) of every spatial block. Default: there are no joint images.
    """
    samples, device = features[0].shape[0], features[0].device
    rows = torch.arange(samples) if needed is None else needed.nonzero().squeeze(1)
    rows = rows.to(device)
    targets = [None] * len(features) if targets is None else targets
    if image_features is None:
        image_features = [feature[:, :0] for feature in features]
    paired = zip(features, image_features, targets, strict=True)
    pairs = [(clip, images, target) for clip, images, target in paired if target is not None]
    if not pairs:  # the adapter gets its gradient of zero in any case: processes wait for it
        nothing = 0 * sum(weight.sum() for weight in adapter.parameters())
        return AlignmentLoss(nothing, features[0].new_zeros(samples), features[0].new_zeros(1, 0))
    of_layers = []
    for clip, images, target in pairs:
        tokens = adapter(target.flatten(0, 1).to(adapter.weight.dtype)).mean(dim=1)
        teacher = tokens.flatten(1).unflatten(0, target.shape[:2])
        student = torch.cat([part[rows].mean(dim=-1, keepdim=True) for part in (clip, images)], dim=1)
        of_frames = dissimilarity(student, teacher.unsqueeze(-1))
        of_layers.append(of_frames.flatten(1).mean(dim=1))
    r = torch.stack(of_layers)
    per_sample = r.new_zeros(samples).index_put((rows,), r.mean(dim=0))
    return AlignmentLoss(per_sample.mean(), per_sample, r.detach())


def dissimilarity(features: Tensor, targets: Tensor) -> Tensor:
    """Return r = 1 - Pearson's correlation over tokens (Eq. 14), per dimension.

    Args:
        features, targets: (..., K, d).

    Returns:
        (..., d) in [0, 2], at least float32; 1 and without gradient where either side does not vary.
    """
    kind = torch.promote_types(torch.promote_types(features.dtype, targets.dtype), torch.float32)
    x, x_varies, x_norm = _centre(features.to(kind))
    y, y_varies, y_norm = _centre(targets.to(kind))
    correlation = ((x * y).sum(dim=-2) / (x_norm * y_norm)).clamp(-1, 1)
    return 1 - torch.where(x_varies & y_varies, correlation, 0)


def _centre(values: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Subtract the mean over tokens; return that, whether more than rounding is left, and its norm (or 1)."""
    centred = values - values.mean(dim=-2, keepdim=True)
    square = centred.square().sum(dim=-2)
    rounding = 16 * torch.finfo(values.dtype).eps
    varies = square > rounding**2 * values.detach().square().sum(dim=-2)
    # The inner `where` keeps the root's infinite slope at zero out of the gradients.
    return centred, varies, torch.where(varies, square, 1).sqrt()


def _check(features: Sequence[Tensor], targets: Sequence[Tensor], t: Tensor, rows: int) -> None:
    if len(features) != len(targets):
        raise ValueError(f"{len(features)} blocks of features against {len(targets)} of targets.")
    if t.shape != features[0].shape[:1]:
        raise ValueError(
            f"t is {tuple(t.shape)}, expected one timestep for each of {len(features[0])} samples."
        )
    for block, (feature, target) in enumerate(zip(features, targets, strict=True)):
        wanted = (rows, *feature.shape[1:])
        if tuple(target.shape) != wanted:
            raise ValueError(f"block {block}: targets are {tuple(target.shape)}, expected {wanted}.")
