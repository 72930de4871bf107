"""`medsora downstream classify`: do unlabelled clips, generated ones perhaps, help a classifier?"""

from __future__ import annotations

import argparse
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch

from medsora.downstream.backbones import BACKBONES, build_backbone
from medsora.downstream.clips import Reading, find_videos, read_clips, read_unlabelled, refuse_leaks
from medsora.downstream.fixmatch import classify, fixmatch_losses
from medsora.downstream.scores import BALANCED_ACCURACY, F1, classification_scores, trivial_classifications
from medsora.downstream.study import SUPERVISED, Study, draws_of_test
from medsora.downstream.training import PUBLISHED, Recipe, given_recipe, tenths, train
from medsora.errors import BadInput
from medsora.runtime.malloc import keep_freed_memory
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

METHOD = 2  # raised when a view or a loss changes, so that no study mixes two


def add_options(add: Any) -> None:
    """Add the options of this command alone."""
    add(
        "--labelled-list",
        metavar="FILE",
        help="CSV with file and label, or lines name.mp4,label as PolypDiag's; or the word folders (default: "
        "labels.csv in the folder, else its sub-folders' names)",
    )
    add("--test-list", metavar="FILE", help="the same for --test")
    add("--per-class", type=int, default=20, metavar="N", help="labelled videos per class (default: 20)")
    add(
        "--positive",
        metavar="LABEL",
        help="label whose F1 is taken (default: 1 if there is 0, else macro F1)",
    )
    add("--protocol", choices=("fixmatch", "published"), default="fixmatch", help="(default: %(default)s)")
    add("--backbone", choices=BACKBONES, default=BACKBONES[0], help="(default: %(default)s)")
    add("--weights", type=Path, metavar="FILE", help="TimeSformer's local weights: SVT's .pth, or a folder")
    add("--frames", type=int, default=8, metavar="F", help="frames of a clip (default: 8)")
    add("--size", type=int, metavar="PX", help="side of a clip (default: 64; of timesformer 224)")
    add("--align", action="store_true", default=None, help="distribution alignment of the pseudo-labels")


def prepare(options: argparse.Namespace, command: str) -> tuple[Study, Any]:
    """Read all clips; return the study and the function that trains one run. Raises `BadInput`."""
    keep_freed_memory()
    published = options.protocol == "published"
    recipe = _recipe(options, published)
    size = options.size or (224 if published or options.backbone == "timesformer" else 64)
    reading = Reading(options.frames, size, published)
    sides = {
        "labelled": (find_videos(options.labelled), options.labelled_list),
        "test": (find_videos(options.test), options.test_list),
    }
    words = {side: videos.labels(source) for side, (videos, source) in sides.items()}
    labels = sorted(set(words["labelled"].values()))
    if unknown := sorted(set(words["test"].values()) - set(labels)):
        raise BadInput(f"{options.test} has videos of {', '.join(unknown)}, and {options.labelled} has none.")
    if len(labels) < 2:
        raise BadInput(f"{options.labelled} has only the label {labels[0]}: there is nothing to tell apart.")
    positive = _positive(options.positive, labels)
    build_backbone(options.backbone, len(labels), options.weights, options.frames, size)
    chosen = {
        seed: _choose(words["labelled"], options.per_class, None if published else seed)
        for seed in options.seeds
    }
    needed = sorted({name for names in chosen.values() for name in names}, key=list(words["labelled"]).index)
    labelled = read_clips(sides["labelled"][0], needed, reading)
    test = read_clips(sides["test"][0], list(words["test"]), reading)
    unlabelled = read_unlabelled(options.unlabelled, options.max_unlabelled, reading)
    refuse_leaks(
        test, {"among the labelled": labelled} | {f"among {name}": s for name, s in unlabelled.items()}
    )
    truth = np.array([labels.index(words["test"][name]) for name in test.names])
    row = {name: number for number, name in enumerate(labelled.names)}
    weights = draws_of_test(len(truth))
    device = join_group().device

    def score(answers: np.ndarray, of: np.ndarray | None = None) -> dict[str, float]:
        return classification_scores(truth, answers, len(labels), positive, of)

    def train_run(variant: str, seed: int) -> dict[str, Any]:
        torch.manual_seed(seed)
        model = build_backbone(options.backbone, len(labels), options.weights, options.frames, size).to(
            device
        )
        rows = [row[name] for name in chosen[seed]]
        targets = np.array([labels.index(words["labelled"][name]) for name in chosen[seed]])
        evaluations: list[tuple[int, dict[str, float], np.ndarray]] = []
        kept: list[float] = []

        def evaluate(step: int, trained: torch.nn.Module) -> None:
            answers = classify(trained, test.values, size)
            evaluations.append((step, score(answers), answers))

        others = unlabelled[variant].values if variant != SUPERVISED else []
        losses = fixmatch_losses(
            model, [labelled.values[k] for k in rows], targets, others, recipe, size, kept
        )
        train(model, recipe, seed, losses, evaluate)
        best = {name: max(evaluations, key=lambda each: each[1][name]) for name in (F1, BALANCED_ACCURACY)}
        drawn = {name: [score(found[2], of)[name] for of in weights] for name, found in best.items()}
        return {
            "scores": {name: found[1][name] for name, found in best.items()},
            "replicates": drawn,
            "last": evaluations[-1][1],
            "answers": evaluations[-1][2].tolist(),
            "labelled": chosen[seed],
            "kept_pseudo_labels": tenths(kept),
        }

    facts = {
        "method": METHOD,
        "recipe": vars(recipe),
        "reading": reading._asdict(),
        "backbone": options.backbone,
        "weights": str(options.weights),
        "labels": labels,
        "positive": positive,
        "labelled": {str(seed): names for seed, names in chosen.items()},
        "pixels": {
            name: side.digest() for name, side in {"labelled": labelled, "test": test, **unlabelled}.items()
        },
    }
    study = Study(
        title="Classification",
        folder=options.out,
        variants={SUPERVISED: 0} | {name: len(samples) for name, samples in unlabelled.items()},
        seeds=options.seeds,
        scores=(F1, BALANCED_ACCURACY),
        trivial=trivial_classifications(truth, labels, positive),
        facts=facts,
        command=command,
        notes=(
            PUBLISHED_NOTE if published else FIXMATCH_NOTE,
            f"{len(chosen[options.seeds[0]])} labelled clips "
            f"({'the first' if published else 'drawn by seed,'} {options.per_class} per class), "
            f"{len(truth)} test clips; F1 is "
            f"{'the mean over all labels' if positive is None else 'that of ' + labels[positive]}.",
        ),
    )
    return study, train_run


def _recipe(options: argparse.Namespace, published: bool) -> Recipe:
    given = given_recipe(options)
    if published and given.keys() - {"align"}:
        names = ", ".join(f"--{name.replace('_', '-')}" for name in given if name != "align")
        raise BadInput(f"the published protocol fixes {names}; leave them out, or take --protocol fixmatch.")
    return PUBLISHED if published else replace(Recipe(), **given)


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
