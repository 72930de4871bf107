"""Evaluation: `python evaluate.py --real DIR --fake DIR --metrics fvd,fid,motion`."""

from __future__ import annotations

from medsora.name_guard import check_kernels_name

check_kernels_name()

import argparse  # noqa: E402
from pathlib import Path  # noqa: E402

from medsora.cli import EXIT_STATUSES  # noqa: E402
from medsora.errors import exit_with_status  # noqa: E402


def main() -> None:
    """Compare generated with real clips, or a VAE's reconstructions with their originals."""
    options = vars(make_parser().parse_args())
    from medsora.evaluation.run import run_evaluation
    from medsora.evaluation.settings import EvaluationSettings

    results = run_evaluation(EvaluationSettings(**options))
    if results is not None:
        print(results.markdown())


def make_parser() -> argparse.ArgumentParser:
    """Return the command line. Its names and defaults are `EvaluationSettings`', which loads slowly."""
    parser = argparse.ArgumentParser(
        description="Compare generated clips with real ones by one documented protocol, written beside the "
        "figures. 'accelerate launch evaluate.py ...' splits the work over processes.",
        epilog=EXIT_STATUSES,
        argument_default=argparse.SUPPRESS,
    )
    add = parser.add_argument
    add("--real", required=True, metavar="DIR", help="real clips: videos or folders of frames, nested or not")
    add("--fake", metavar="DIR", help="generated clips, such as sample_ddim.py's --out")
    add(
        "--metrics",
        metavar="NAMES",
        help="of fvd, cd-fvd, fid, is, fc, motion, pixel, joined by commas; the last two need no weights "
        "(default: motion,pixel)",
    )
    add("--clips", type=int, metavar="N", help="at most so many clips on each side (default: 2048)")
    add("--frames", type=int, metavar="F", help="frames per clip (default: 16)")
    add("--size", type=int, metavar="PX", help="side of a frame; both sides are resized alike (default: 128)")
    add("--interval", type=int, metavar="N", help="every N-th frame of the real videos (default: 1)")
    add("--seed", type=int, help="of the choice of clips and of re-sampling (default: 0)")
    add(
        "--bootstrap", type=int, metavar="N", help="N re-samplings give every figure an interval (default: 0)"
    )
    add("--corpus", help="whose columns in the paper's tables: colonoscopic, cholectriplet, kvasir_capsule")
    add("--out", type=Path, metavar="DIR", help="where the results go (default: results)")
    add(
        "--cache",
        type=Path,
        metavar="DIR",
        help="where real features are kept (default: runs/cache/features)",
    )
    add("--batch-size", type=int, metavar="N", help="clips in one forward (default: 4)")
    return parser


if __name__ == "__main__":
    exit_with_status(main)
