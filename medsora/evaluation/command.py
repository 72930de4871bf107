"""The command line of evaluation: `evaluate.py` and `medsora evaluate`."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path

from medsora.checkout import command_name
from medsora.config.choices import METRICS, WEIGHT_FREE
from medsora.config.crop import crop_of_text
from medsora.errors import BadInput
from medsora.runtime.exit import EXIT_STATUSES

OF_A_VAE = {"vae", "real", "clips", "frames", "size", "crop", "interval", "rate", "seed", "weights", "out"}


def main(arguments: Sequence[str] | None = None, prog: str | None = None) -> None:
    """Compare generated with real clips, or a VAE's reconstructions with their originals."""
    options = vars(make_parser(prog).parse_args(arguments))
    if ("vae" in options) == ("fake" in options):
        raise BadInput(
            "give either --fake DIR ..., generated clips to compare, or --vae FOLDER, a VAE to measure."
        )
    if unfit := sorted(set(options) - OF_A_VAE) if "vae" in options else []:
        raise BadInput(
            f"--vae measures reconstructions and has no --{unfit[0].replace('_', '-')}; leave it out."
        )
    from medsora.evaluation.compare import compare, name_folders
    from medsora.evaluation.metrics.weight_files import parse_weights
    from medsora.evaluation.run import evaluate
    from medsora.evaluation.vae_quality import VaeSettings, evaluate_vae, markdown

    if "vae" in options and isinstance(options.get("clips"), tuple):
        raise BadInput("--vae measures real clips alone; give --clips one number.")
    options["weights"] = parse_weights(options.get("weights", []))
    if "vae" in options:
        measured = evaluate_vae(VaeSettings(**options))
        page = measured and markdown(measured)
    elif len(options["fake"]) > 1:
        fakes = name_folders(options.pop("fake"), options.pop("names", None))
        results = compare(options.pop("real"), fakes, **options)
        page = results and results.markdown(notes=False)
    else:
        if {"names", "dry_run"} & set(options):
            raise BadInput("--names and --dry-run belong to a comparison of several --fake; leave them out.")
        (options["fake"],) = options["fake"]
        results = evaluate(**options)
        page = results and results.markdown(notes=False)  # they are on standard error
    if page:
        print(page)


def _clips_of_text(text: str) -> int | tuple[int, ...]:
    """Return what "2048" or "4096,2048" names; `EvaluationSettings` checks the numbers."""
    try:
        numbers = tuple(int(part) for part in text.split(","))
    except ValueError:
        raise argparse.ArgumentTypeError(
            f"must be a number of clips, or several with commas between, not {text}"
        ) from None
    return numbers if len(numbers) > 1 else numbers[0]


def make_parser(prog: str | None = None) -> argparse.ArgumentParser:
    """Return the command line; its names and defaults are `EvaluationSettings`', which loads slowly."""
    sample = command_name("sample")
    parser = argparse.ArgumentParser(
        prog=prog,
        description="Compare generated clips with real ones, or a VAE's reconstructions with their "
        "originals, by one protocol that is written beside the metrics. 'accelerate launch "
        f"{command_name('evaluate', launched=True)} ...' splits the work over processes.",
        epilog=EXIT_STATUSES.replace("state saved", "extracted features kept"),
        argument_default=argparse.SUPPRESS,
    )
    add = parser.add_argument
    add("--real", required=True, metavar="DIR", help="real clips: videos or folders of frames, nested or not")
    fake = f"generated clips, such as {sample}'s --out; several folders are compared in one table, on "
    fake += "equally many clips each"
    add("--fake", nargs="+", metavar="DIR", help=fake)
    add(
        "--names",
        nargs="+",
        metavar="NAME",
        help="names of the --fake folders in the results (default: the folders')",
    )
    dry_run = "with several --fake: print which clips would be scored, and extract nothing"
    add("--dry-run", action="store_true", help=dry_run)
    add("--vae", metavar="RUN_OR_FOLDER", help="instead of --fake: measure this VAE on the real clips")
    metrics = f"one or more of {', '.join(METRICS)}, joined by commas; {' and '.join(WEIGHT_FREE)} need no "
    metrics += "weights; by default motion,pixel, with --protocol stylegan-v fvd,fid,is"
    add("--metrics", metavar="NAMES", help=metrics)
    protocol = "how clips are chosen and prepared: medsora, or stylegan-v, that of most published values, "
    protocol += "which fixes clips, interval and crop (default: medsora)"
    add("--protocol", metavar="NAME", help=protocol)
    clips = "at most so many clips on each side; REAL,GENERATED limits them separately (default: 2048)"
    add("--clips", type=_clips_of_text, metavar="N", help=clips)
    add("--frames", type=int, metavar="F", help="frames per clip (default: 16)")
    add("--size", type=int, metavar="PX", help="side of a frame; both sides are resized alike (default: 128)")
    add(
        "--crop",
        type=crop_of_text,
        metavar="CROP",
        help="auto: cut every video's own black borders off first, on both sides alike, as training does; "
        "none: whole frames, for a model trained with data.crop: none; TOP,BOTTOM,LEFT,RIGHT: these parts "
        "of real frames, for one trained with the same data.crop; by default what the generated clips name, "
        f"as {sample} writes them, else auto",
    )
    interval = (
        "take every N-th frame of the real videos, as in training, and every frame of generated ones; by "
    )
    interval += f"default what the generated clips name, as {sample} writes them, else 1"
    add("--interval", type=int, metavar="N", help=interval)
    add(
        "--flow",
        metavar="NAME",
        help="optical-flow estimator of motion: raft_large, raft_small, dis (OpenCV's, without "
        "weights), or auto: RAFT where its weights are given or in PyTorch's cache, else dis (default: auto)",
    )
    rate = "instead of --interval: frames per second of the real clips, taken by time, as with data.rate"
    add("--rate", type=float, metavar="FPS", help=rate)
    add("--seed", type=int, help="seed of the choice of clips and of re-sampling (default: 0)")
    bootstrap = "bootstrap re-samplings, for an interval of each metric; with several --fake 200 (default: 0)"
    add("--bootstrap", type=int, metavar="N", help=bootstrap)
    add("--label", metavar="NAME", help="use only the real clips with this label")
    labels = "where --label reads the labels, as data.labels: folders, or a CSV (default: labels.csv)"
    add("--labels", metavar="SOURCE", help=labels)
    memorised = "audit whether generated clips repeat these training clips; --real must then be held out"
    add("--memorised", metavar="TRAIN_DIR", help=memorised)
    weights = "local weights: fvd, cd-fvd, inception, clip (a folder), raft_large, raft_small, lpips; else "
    weights += "the first four are downloaded once, RAFT is only if --flow names it, and LPIPS is left out"
    add("--weights", nargs="+", metavar="NAME=PATH", help=weights)
    corpus = "the published set that the real clips are: colonoscopic, cholectriplet or kvasir_capsule; the "
    corpus += "paper's values of the same metrics then stand beside this run's"
    add("--corpus", help=corpus)
    add("--out", type=Path, metavar="DIR", help="where the results go (default: results)")
    add(
        "--cache",
        type=Path,
        metavar="DIR",
        help="cache of the real clips' features (default: runs/cache/features)",
    )
    add("--batch-size", type=int, metavar="N", help="clips per forward pass (default: 4)")
    return parser
