"""Self-distillation without labels (DINO, Caron et al., 2021): crops, the projection head and the loss.

Student and teacher see crops of one picture; the student's distribution over prototypes for every crop is
pulled towards the teacher's for every other large crop. The teacher is an average of the student; centring
and a low temperature prevent a collapse.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

LARGE_CROPS, SMALL_CROPS = 2, 4
LARGE_AREA, SMALL_AREA = (0.4, 1.0), (0.08, 0.4)  # share of the picture
MAX_GAIN = 0.3  # Eq. 13 divides by the frame's largest motion, which may be a single pixel's
PROTOTYPES, HEAD_WIDTH, BOTTLENECK = 1024, 384, 64
STUDENT_TEMPERATURE, TEACHER_TEMPERATURE = 0.1, 0.04
CENTRE_MOMENTUM = 0.9


def random_crops(
    pictures: Tensor, count: int, size: int, area: tuple[float, float], generator: torch.Generator
) -> list[Tensor]:
    """Return `count` random crops of each picture, resized, with another brightness; half of them blurred.

    Colours and sides stay as they are: hue is a direction.

    Args:
        pictures: (N, 3, H, W) in [0, 1].
        size: side of the crops in pixels.
        area: smallest and largest area of a crop, of the picture's.

    Returns:
        `count` tensors (N, 3, size, size).
    """
    crops = []
    for _ in range(count):
        draw = torch.rand(len(pictures), 6, generator=generator)
        share = area[0] + (area[1] - area[0]) * draw[:, 0]
        aspect = (4 / 3) ** (2 * draw[:, 1] - 1)
        sides = torch.stack([(share * aspect).sqrt(), (share / aspect).sqrt()], dim=1).clamp_max(1)
        shift = (1 - sides) * (2 * draw[:, 2:4] - 1)
        boxes = torch.cat([torch.diag_embed(sides), shift[:, :, None]], dim=2)
        grid = F.affine_grid(boxes, [len(pictures), 3, size, size], align_corners=False)
        crop = F.grid_sample(pictures, grid.to(pictures), padding_mode="border", align_corners=False)
        gain = (1 + MAX_GAIN * (2 * draw[:, 4] - 1)).to(crop).view(-1, 1, 1, 1)
        blurred = F.avg_pool2d(crop, 3, stride=1, padding=1, count_include_pad=False)
        is_blurred = (draw[:, 5] < 0.5).to(crop.device).view(-1, 1, 1, 1)
        crops.append((torch.where(is_blurred, blurred, crop) * gain).clamp_max(1))
    return crops


class ProjectionHead(nn.Module):
    """Class tokens (N, D) to scores (N, PROTOTYPES): cosines with prototypes in a narrow space."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.layers = nn.Sequential(
            nn.Linear(width, HEAD_WIDTH),
            nn.GELU(),
            nn.Linear(HEAD_WIDTH, HEAD_WIDTH),
            nn.GELU(),
            nn.Linear(HEAD_WIDTH, BOTTLENECK),
        )
        self.prototypes = nn.Parameter(torch.randn(PROTOTYPES, BOTTLENECK))

    def forward(self, tokens: Tensor) -> Tensor:
        """Return the cosines, in [-1, 1]."""
        return F.linear(F.normalize(self.layers(tokens), dim=-1), F.normalize(self.prototypes, dim=-1))


class DinoLoss(nn.Module):
    """Cross-entropy between the teacher's and the student's distributions over pairs of crops (DINO, Eq. 1).

    Attributes:
        centre: (PROTOTYPES,) running mean of the teacher's scores.
    """

    centre: Tensor

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("centre", torch.zeros(PROTOTYPES))

    def forward(self, student: Sequence[Tensor], teacher: Sequence[Tensor]) -> Tensor:
        """Return the loss and move the centre.

        Args:
            student: scores (N, PROTOTYPES) of every crop; the first ones are the teacher's crops.
            teacher: scores of the large crops.
        """
        targets = [((scores - self.centre) / TEACHER_TEMPERATURE).softmax(-1).detach() for scores in teacher]
        answers = [(scores / STUDENT_TEMPERATURE).log_softmax(-1) for scores in student]
        losses = [
            -(target * answer).sum(-1).mean()
            for i, target in enumerate(targets)
            for k, answer in enumerate(answers)
            if i != k
        ]
        mean = torch.cat(list(teacher)).mean(dim=0).detach()
        self.centre.mul_(CENTRE_MOMENTUM).add_(mean, alpha=1 - CENTRE_MOMENTUM)
        return torch.stack(losses).mean()
