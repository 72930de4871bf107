"""`medsora downstream segment`: do unlabelled frames, generated ones perhaps, help polyp segmentation?"""

from __future__ import annotations

import argparse
import hashlib
from typing import Any

import numpy as np
import torch

from medsora.downstream.clips import read_unlabelled_frames
from medsora.downstream.scores import DICE, IOU, mask_scores, trivial_masks
from medsora.downstream.segmentation.masks import find_pairs, read_pairs
from medsora.downstream.segmentation.pixel_fixmatch import segmentation_losses
from medsora.downstream.segmentation.unet import MULTIPLE_PX, UNet
from medsora.downstream.study import SUPERVISED, Study, draws_of_test
from medsora.downstream.training import given_recipe, predict, tenths, train
from medsora.errors import BadInput
from medsora.runtime.processes import join_group

NOTE = (
    "FixMatch on pixels: a strong view (colours, blur, CutMix) learns the weak view's mask where its "
    "probability reaches the threshold. Averaged weights, scored after the last step; means over pictures."
)

LIMITS = {"masks": (1, 100_000), "size": (1, 1024)}
METHOD = 1  # raised when a view or a loss changes, so that no study mixes two


def add_options(add: Any) -> None:
    """Add the options of this command alone."""
    add("--masks", type=int, default=20, metavar="N", help="labelled pictures, drawn by seed (default: 20)")
    add("--size", type=int, default=64, metavar="PX", help="side of a picture (default: 64)")


def prepare(options: argparse.Namespace, command: str) -> Study:
    """Read all pictures; return the study. Raises `BadInput`."""
    recipe, size = given_recipe(options), options.size
    if size % MULTIPLE_PX or size < 2 * MULTIPLE_PX:
        raise BadInput(f"--size is {size} but must be a multiple of {MULTIPLE_PX} from {2 * MULTIPLE_PX} on.")
    pairs = find_pairs(options.labelled)
    if len(pairs) < options.masks:
        raise BadInput(f"{options.labelled} holds {len(pairs)} masks; lower --masks {options.masks}.")
    drawn = {
        seed: np.random.default_rng((seed, 2)).permutation(len(pairs))[: options.masks].tolist()
        for seed in options.seeds
    }
    needed = sorted({number for numbers in drawn.values() for number in numbers})
    labelled, masks = read_pairs(options.labelled, [pairs[number] for number in needed], size)
    test, truth = read_pairs(options.test, find_pairs(options.test), size)
    unlabelled = read_unlabelled_frames(options.unlabelled, options.max_unlabelled, size)
    rows = {seed: [needed.index(number) for number in numbers] for seed, numbers in drawn.items()}
    names = {seed: [labelled.names[row] for row in chosen] for seed, chosen in rows.items()}
    device = join_group().device

    def train_run(variant: str, seed: int) -> dict[str, Any]:
        torch.manual_seed(seed)
        model = UNet().to(device)
        scores_of_pictures: dict[str, np.ndarray] = {}
        kept: list[float] = []

        def evaluate(step: int, trained: torch.nn.Module) -> None:
            scores_of_pictures.update(
                mask_scores(truth, predict(trained, [value[0] for value in test.values]) > 0)
            )

        others = [] if variant == SUPERVISED else [value[0] for value in unlabelled[variant].values]
        pictures = [labelled.values[row][0] for row in rows[seed]]
        losses = segmentation_losses(model, pictures, masks[rows[seed]], others, recipe, kept)
        train(model, recipe, seed, losses, evaluate, f"{variant}, seed {seed}")
        weights = draws_of_test(len(truth))
        return {
            "scores": {name: float(values.mean()) for name, values in scores_of_pictures.items()},
            "replicates": {
                name: (weights @ values / len(truth)).tolist() for name, values in scores_of_pictures.items()
            },
            "of_pictures": {name: values.tolist() for name, values in scores_of_pictures.items()},
            "labelled": names[seed],
            "kept_pseudo_labels": tenths(kept),
        }

    return Study(
        folder=options.out,
        seeds=options.seeds,
        command=command,
        labelled=labelled,
        test=test,
        unlabelled=unlabelled,
        train=train_run,
        facts={
            "method": METHOD,
            "recipe": vars(recipe),
            "size": size,
            "labelled": {str(seed): of_seed for seed, of_seed in names.items()},
            "masks": [hashlib.sha256(np.packbits(side)).hexdigest() for side in (masks, truth)],
        },
        title="Segmentation",
        scores=(DICE, IOU),
        trivial=trivial_masks(truth, [masks[rows[seed]] for seed in options.seeds]),
        notes=(
            NOTE,
            f"{options.masks} labelled pictures, drawn by seed, {len(truth)} test pictures, of which "
            f"{int((~truth.any((1, 2))).sum())} show no polyp (the empty mask has 100 there).",
        ),
    )
