"""Label accuracy of a model, measured on the phantom, whose labels are certain.

`python -m medsora.evaluation.conditional.labels --model RUN --out DIR` trains a classifier on freshly
rendered phantom clips and tries it on others that are held out, as they are and as the model's VAE returns
them. Then as many clips are sampled of each label, and the classifier labels them. Against shuffled
labels the same answers must be at chance. `--vae` instead of `--model`: what a VAE keeps of each label.
"""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

import numpy as np

from medsora.data.sheet import contact_sheet, save_image
from medsora.errors import BadInput, bad_input_from_errors
from medsora.evaluation.conditional.classifier import FrameClassifier, predicted_labels
from medsora.evaluation.conditional.command import (
    command_parser,
    conclude,
    load_labelled,
    run_command,
    sampled,
    through_vae,
    trained_phantom,
)
from medsora.evaluation.conditional.fresh_phantom import (
    CLASSIFIER_RECIPE,
    HELD_OUT_SEED,
    phantom_classifier,
    phantom_clips,
)
from medsora.evaluation.sanity.criterion import Criterion
from medsora.runtime.exit import exit_with_status
from medsora.runtime.files import make_folder
from medsora.sampling.pipeline import MedSoraPipeline
from medsora.saved.find import PARTS, checked_base, find_vae, load_vae
from medsora.saved.pipeline import SavedPipeline
from medsora.vae import FrequencyCompensatedVAE

FRAMES, SIZE = 17, 64  # the classifier's clips without a model, as in configs/phantom_labels.yaml
SHUFFLES = 1000
SHEET_ROWS = 8
ON_PHANTOM = "judge on phantom clips (held out)"
THROUGH_VAE = "judge on the same, through the VAE"
MIN_ACCURACY, MIN_AGREEMENT = 0.95, 0.85


def agreement(requested: np.ndarray, seen: np.ndarray, names: list[str]) -> dict[str, Any]:
    """Return the agreement of requested with predicted label numbers, (n,) each, as shares of 1.

    `shuffled` is the mean over `SHUFFLES` shuffles of the requested labels, `chance` what it must be near:
    the agreement of independent answers with the same frequencies; `of_label` has each label's by name.
    """
    random = np.random.default_rng(0)
    shuffled = [(random.permutation(requested) == seen).mean() for _ in range(SHUFFLES)]
    return {
        "agreement": float((requested == seen).mean()),
        "shuffled": float(np.mean(shuffled)),
        "chance": float(sum((requested == k).mean() * (seen == k).mean() for k in range(len(names)))),
        "of_label": {
            name: float((seen[requested == k] == k).mean())
            for k, name in enumerate(names)
            if (requested == k).any()
        },
    }


def main() -> None:
    """Run the command line."""
    parser = command_parser(
        "labels",
        __doc__.partition("\n")[0],
        model="a model of the phantom with labels; none: the classifier alone, or with --vae",
        videos=200,
        model_required=False,
    )
    add = parser.add_argument
    add("--vae", metavar="VAE", help="without a model: a VAE's run or folder, or the JSON file of a base")
    add("--size", type=int, default=SIZE, metavar="PX", help="without a model (default: %(default)s)")
    add("--guidance", type=float, default=3.0, metavar="G", help="(default: %(default)s)")
    add("--seed", type=int, default=0, metavar="S", help="video k has the seed S + k (default: %(default)s)")
    trains, tests = "clips that train the classifier", "clips that test it"
    add("--training-clips", type=int, default=900, metavar="N", help=f"{trains} (default: %(default)s)")
    add("--held-out-clips", type=int, default=300, metavar="N", help=f"{tests} (default: %(default)s)")
    add("--epochs", type=int, default=24, metavar="N", help="its epochs (default: %(default)s)")
    add(
        "--polyp-size",
        type=float,
        metavar="X",
        help="relative width of the classifier's polyps (default: that of the run's config.yaml, else 1)",
    )
    add("--cache", type=Path, default=Path("runs/cache"), metavar="DIR", help="(default: %(default)s)")
    run_command(parser, measure)


def measure(options: argparse.Namespace) -> int:
    """Train and test the classifier, sample, compare, write; return the exit status.

    Raises `BadInput` for a model without labels.
    """
    pipeline, vae, frames, size = None, None, FRAMES, options.size
    if options.vae:
        if options.model:
            raise BadInput("--vae measures a VAE alone; a model is measured with its own: leave one out.")
        vae = _load_vae(options.vae)
    if options.model:
        pipeline = load_labelled(options.model, any_kind=True)
        vae = pipeline.components[PARTS[type(pipeline).__name__][1]]
        frames, (size, _) = pipeline.config.frames, pipeline.config.size
    device = pipeline.device if pipeline else "cpu"
    polyps, look = trained_phantom(options.model or options.vae)
    polyps = polyps if options.polyp_size is None else options.polyp_size
    kind, phantom = (frames, size), (polyps, look)
    tests, truth, names = phantom_clips(options.cache, options.held_out_clips, *kind, HELD_OUT_SEED, phantom)
    settings = (*kind, options.epochs, phantom, device)
    classifier = phantom_classifier(options.cache, options.training_clips, *settings)
    make_folder(options.out)
    results = {ON_PHANTOM: float((predicted_labels(classifier, tests) == truth).mean())}
    if vae is not None:
        seen = predicted_labels(classifier, through_vae(vae, tests))
        results[THROUGH_VAE] = float((seen == truth).mean())
        for k, name in enumerate(names):
            results[f"{THROUGH_VAE}, {name}"] = float((seen == k)[truth == k].mean())
    if pipeline is not None:
        results |= _model_results(pipeline, classifier, names, options)
    results |= {"model": options.model or options.vae, "polyp_size": polyps, "look": look}
    results["classifier_recipe"] = CLASSIFIER_RECIPE
    return conclude(options.out, results, _criteria(results))


def _load_vae(named: str) -> FrequencyCompensatedVAE:
    with bad_input_from_errors():
        if named.endswith(".json"):
            weights = str(Path(named).with_suffix(".safetensors"))
            checked_base(named, weights, FrequencyCompensatedVAE.base_class)
            return FrequencyCompensatedVAE.from_base(named, weights=weights).eval()
        return load_vae(find_vae(named)).eval()


def _model_results(
    pipeline: SavedPipeline, classifier: FrameClassifier, names: list[str], options: argparse.Namespace
) -> dict[str, object]:
    requested = np.arange(options.videos) % len(names)
    wanted = [names[k] for k in requested]
    seeds = range(options.seed, options.seed + options.videos)
    videos = sampled(pipeline, options, seeds, label=wanted, guidance=options.guidance)
    seen = predicted_labels(classifier, videos)
    for k, name in enumerate(names):
        rows = [
            (f"requested {name}, seed {options.seed + row}, classified as {names[seen[row]]}", videos[row])
            for row in np.flatnonzero(requested == k)[:SHEET_ROWS]
        ]
        if rows:
            save_image(options.out / f"sheet-{name}.png", contact_sheet(rows, columns=8))
    of_diffusion = ("sampler", "steps") if isinstance(pipeline, MedSoraPipeline) else ()
    settings = ("videos", "guidance", *of_diffusion, "seed")
    return agreement(requested, seen, names) | {key: getattr(options, key) for key in settings}


def _criteria(results: dict[str, object]) -> list[Criterion]:
    wanted = [("the classifier is right about phantom clips (held out)", ON_PHANTOM, MIN_ACCURACY)]
    if "agreement" in results:
        wanted.append(("sampled clips show the requested label", "agreement", MIN_AGREEMENT))
    else:
        prefix = f"{THROUGH_VAE}, "
        kept = [key for key in results if key.startswith(prefix)]
        wanted += [(f"{key.removeprefix(prefix)} is kept by the VAE", key, MIN_ACCURACY) for key in kept]
    return [
        Criterion(f"{sentence} in {results[key]:.1%}, at least {least:.0%}", results[key] >= least)
        for sentence, key, least in wanted
    ]


if __name__ == "__main__":
    exit_with_status(main)
