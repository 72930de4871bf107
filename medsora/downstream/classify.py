"""`medsora downstream classify`: do unlabelled clips, generated ones perhaps, help a classifier?"""

from __future__ import annotations

import argparse
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

from medsora.downstream.backbones import BACKBONES, build_backbone
from medsora.downstream.clips import Reading, find_videos, read_clips, read_unlabelled
from medsora.downstream.fixmatch import PUBLISHED_SCALES_PX, classify, fixmatch_losses
from medsora.downstream.scores import BALANCED_ACCURACY, F1, classification_scores, trivial_classifications
from medsora.downstream.study import SUPERVISED, Study, draws_of_test
from medsora.downstream.training import PUBLISHED, Recipe, given_recipe, tenths, train
from medsora.errors import BadInput
from medsora.runtime.digests import sha256
from medsora.runtime.processes import join_group

FIXMATCH_NOTE = (
    "FixMatch as its authors define it: a strong view learns the weak view's class where its probability "
    "reaches the threshold. Averaged weights, scored after the last step."
)
PUBLISHED_NOTE = (
    "Protocol `published`: what the code released with Endora does. The weak view learns its own "
    "pseudo-label, supervised runs are scored without the average of the weights and the others with it, the "
    "clips are cut at the left, and every score is the best of 20 evaluations on the test set: too high by "
    "construction."
)

SMALL_LEARNING_RATE = 0.01  # without batch normalisation, the small backbone learns less at FixMatch's 0.03
LIMITS = {"per_class": (1, 100_000), "frames": (1, 256), "size": (1, 1024)}
METHOD = 2  # raised when a view or a loss changes, so that no study mixes two


def add_options(add: Any) -> None:
    """Add the options of this command alone."""
    lists = "CSV with file and label, or lines name.mp4,label as PolypDiag's; or the word folders (default: "
    lists += "labels.csv in the folder, else its sub-folders' names)"
    add("--labelled-list", metavar="FILE", help=lists)
    add("--test-list", metavar="FILE", help="the same for --test")
    add("--per-class", type=int, default=20, metavar="N", help="labelled videos per class (default: 20)")
    add("--positive", metavar="LABEL", help="label of the F1 (default: 1 if there is 0, else macro F1)")
    add("--protocol", choices=("fixmatch", "published"), default="fixmatch", help="(default: %(default)s)")
    add("--backbone", choices=BACKBONES, default=BACKBONES[0], help="(default: %(default)s)")
    add("--weights", type=Path, metavar="FILE", help="TimeSformer's local weights: SVT's .pth, or a folder")
    add("--frames", type=int, default=8, metavar="F", help="frames of a clip (default: 8)")
    add("--size", type=int, metavar="PX", help="side of a clip (default: 64; of timesformer 224)")
    add("--align", action="store_true", default=None, help="distribution alignment of the pseudo-labels")


def prepare(options: argparse.Namespace, command: str) -> Study:
    """Read all clips; return the study. Raises `BadInput`."""
    published = options.protocol == "published"
    recipe = choose_recipe(options, published)
    size = options.size or (224 if published or options.backbone == "timesformer" else 64)
    if published and size > PUBLISHED_SCALES_PX[0]:
        most = PUBLISHED_SCALES_PX[0]
        raise BadInput(f"--protocol published cuts clips to at most {most} pixels; lower --size {size}.")
    reading = Reading(options.frames, size, published)
    videos, test_videos = find_videos(options.labelled), find_videos(options.test)
    label_of, test_labels = videos.labels(options.labelled_list), test_videos.labels(options.test_list)
    labels = sorted(set(label_of.values()))
    if unknown := sorted(set(test_labels.values()) - set(labels)):
        raise BadInput(f"{options.test} has videos of {', '.join(unknown)}, and {options.labelled} has none.")
    if len(labels) < 2:
        raise BadInput(f"{options.labelled} has only the label {labels[0]}: there is nothing to classify.")
    positive = _positive(options.positive, labels)

    def build() -> nn.Module:
        return build_backbone(options.backbone, len(labels), options.weights, options.frames, size)

    build()  # reports invalid settings before any clip is read
    chosen = {
        seed: _choose(label_of, options.per_class, None if published else seed) for seed in options.seeds
    }
    needed = {name for names in chosen.values() for name in names}
    labelled = read_clips(videos, [name for name in label_of if name in needed], reading)
    test = read_clips(test_videos, list(test_labels), reading)
    unlabelled = read_unlabelled(options.unlabelled, options.max_unlabelled, reading)
    truth = np.array([labels.index(label) for label in test_labels.values()])
    clips = dict(zip(labelled.names, labelled.values, strict=True))
    device = join_group().device

    def score(answers: np.ndarray, of: np.ndarray | None = None) -> dict[str, float]:
        return classification_scores(truth, answers, len(labels), positive, of)

    def train_run(variant: str, seed: int) -> dict[str, Any]:
        torch.manual_seed(seed)
        model, names = build().to(device), chosen[seed]
        evaluations: list[tuple[dict[str, float], np.ndarray]] = []
        kept: list[float] = []

        def evaluate(step: int, trained: nn.Module) -> None:
            answers = classify(trained, test.values, size)
            evaluations.append((score(answers), answers))

        targets = np.array([labels.index(label_of[name]) for name in names])
        others = [] if variant == SUPERVISED else unlabelled[variant].values
        losses = fixmatch_losses(model, [clips[name] for name in names], targets, others, recipe, size, kept)
        train(model, recipe, seed, losses, evaluate, f"{variant}, seed {seed}")
        best = {name: max(evaluations, key=lambda each: each[0][name]) for name in (F1, BALANCED_ACCURACY)}
        weights = draws_of_test(len(truth))
        return {
            "scores": {name: scores[name] for name, (scores, _) in best.items()},
            "replicates": {
                name: [score(answers, of)[name] for of in weights] for name, (_, answers) in best.items()
            },
            "last": evaluations[-1][0],
            "answers": evaluations[-1][1].tolist(),
            "labelled": names,
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
            "reading": reading._asdict(),
            "backbone": options.backbone,
            "weights": weights_facts(options.weights),
            "labels": labels,
            "positive": positive,
            "labelled": {
                str(seed): [[name, label_of[name]] for name in names] for seed, names in chosen.items()
            },
            "truth": [int(answer) for answer in truth],
        },
        title="Classification",
        scores=(F1, BALANCED_ACCURACY),
        trivial=trivial_classifications(truth, labels, positive),
        notes=(
            PUBLISHED_NOTE if published else FIXMATCH_NOTE,
            f"{len(chosen[options.seeds[0]])} labelled clips "
            f"({'the first' if published else 'drawn by seed,'} {options.per_class} per class), "
            f"{len(truth)} test clips; F1 is "
            f"{'the mean over all labels' if positive is None else 'that of ' + labels[positive]}.",
        ),
    )


def choose_recipe(options: argparse.Namespace, published: bool) -> Recipe:
    """Return the training settings of a protocol and backbone; raises `BadInput` for options it fixes."""
    if not published:
        recipe = given_recipe(options)
        slower = options.learning_rate is None and options.backbone == BACKBONES[0]
        return replace(recipe, learning_rate=SMALL_LEARNING_RATE) if slower else recipe
    fixed = ("steps", "batch", "ratio", "learning_rate", "threshold")
    given = [name.replace("_", "-") for name in fixed if getattr(options, name) is not None]
    if given := ", ".join(f"--{name}" for name in given):
        raise BadInput(f"the published protocol fixes {given}; leave them out, or take --protocol fixmatch.")
    return PUBLISHED


def _positive(given: str | None, labels: list[str]) -> int | None:
    if given is None:
        return labels.index("1") if labels == ["0", "1"] else None
    if given not in labels:
        raise BadInput(f"--positive is {given}, but the labels are {', '.join(labels)}.")
    return labels.index(given)


def _choose(words: dict[str, str], per_class: int, seed: int | None) -> list[str]:
    """Return `per_class` videos of each label: the first of the list, or drawn by `seed`."""
    chosen = []
    for label in sorted(set(words.values())):
        names = [name for name, word in words.items() if word == label]
        if len(names) < per_class:
            raise BadInput(f"only {len(names)} labelled videos show {label}; lower --per-class {per_class}.")
        if seed is not None:
            picked = np.random.default_rng((seed, 2)).permutation(len(names))[:per_class]
            names = [names[k] for k in sorted(picked)]
        chosen += names[:per_class]
    return chosen


def weights_facts(path: Path | None) -> str | dict[str, str]:
    """Return what identifies a backbone's weights: the digest of their file, or those of a folder's files."""
    if path is None or path.is_file():
        return str(path and sha256(path))
    return {each.name: sha256(each) for each in sorted(path.iterdir()) if each.is_file()}
