"""`python -m medsora.training.dino RUN OUT`: train the phantom's flow encoder and write what ships.

The encoder's architecture is OUT.json, which is there already; OUT.safetensors (fp16) and OUT.md are written.
The note's metrics are measured here, from the file as it was written, on clips of another seed.
"""

from __future__ import annotations

import argparse
import math
import sys
from pathlib import Path

from medsora.data.phantom.corpus import LOOK
from medsora.errors import bad_input_from_errors, check_limits
from medsora.flow_prior.dino import DinoEncoder, build_network
from medsora.flow_prior.weights import save_weights
from medsora.runtime.exit import EXIT_STATUSES
from medsora.runtime.files import write_text, written_beside
from medsora.runtime.markdown import markdown_table
from medsora.training.command_line import (
    documented_command,
    minutes_left,
    number_between,
    time_limit,
)
from medsora.training.dino.loop import Recipe, train_dino
from medsora.training.dino.pictures import flow_pictures
from medsora.training.dino.probe import colour_probe, probe

UNSEEN_SEED = 2


def main() -> None:
    """Render, train, write, measure."""
    parser = argparse.ArgumentParser(
        prog="python -m medsora.training.dino", description=__doc__.splitlines()[0], epilog=EXIT_STATUSES
    )
    add, default = parser.add_argument, Recipe()
    add("run", type=Path, help="folder for pictures and checkpoints; a run that is there is resumed")
    add("out", type=Path, help="OUT.json describes the encoder; the others are written beside it")
    add("--clips", type=int, default=300, metavar="N", help="phantom clips to train on (default: 300)")
    add("--unseen", type=int, default=120, metavar="N", help="phantom clips to evaluate on (default: 120)")
    add("--size", type=int, default=128, metavar="PX", help="side of the clips (default: 128)")
    add("--steps", type=int, default=default.steps, metavar="N", help="(default: %(default)s)")
    add(
        "--batch", type=int, default=default.batch, metavar="N", help="pictures a step (default: %(default)s)"
    )
    rate = number_between(0, 10, "a number between 0 and 10")
    add("--lr", type=rate, default=default.lr, metavar="X", help="(default: %(default)s)")
    add("--seed", type=int, default=default.seed, metavar="N", help="(default: %(default)s)")
    add("--time-limit", type=time_limit, metavar="MINUTES", help="save and exit with status 75 before that")
    options = parser.parse_args()
    limits = dict.fromkeys(("clips", "steps", "batch", "size"), (1, math.inf))
    check_limits(options, limits | {"unseen": (12, math.inf)})
    architecture = str(options.out.with_suffix(".json"))
    with bad_input_from_errors():
        network = build_network(architecture)
        recipe = Recipe(options.steps, options.batch, options.lr, seed=options.seed)
        pictures = flow_pictures(options.run / "pictures", options.clips, options.size, seed=options.seed)
        unseen = flow_pictures(options.run / "unseen", options.unseen, options.size, seed=UNSEEN_SEED)
    limit = minutes_left(options.time_limit)
    state = train_dino(pictures, architecture, recipe, options.run / "checkpoints", time_limit_minutes=limit)
    weights = options.out.with_suffix(".safetensors")
    with written_beside(weights) as beside:
        save_weights({name: tensor.half() for name, tensor in state.items()}, beside)
    rows = {
        "this encoder": probe(DinoEncoder(architecture, weights), unseen),
        "the same, untrained": probe(DinoEncoder(architecture, "random"), unseen),
        "4x4 mean colours": colour_probe(unseen),
    }
    names = list(rows["this encoder"])
    table = [[row, *(f"{values[name]:.3f}" for name in names)] for row, values in rows.items()]
    parameters = sum(parameter.numel() for parameter in network.parameters())
    note = [
        "# The small flow encoder of the phantom",
        "",
        "A vision transformer trained from scratch by DINO's objective on flow pictures (DIS, Eq. 13) of "
        f"procedural phantom clips (look {LOOK}), on nobody's footage. "
        f"{parameters:,} parameters, {weights.stat().st_size:,} bytes in fp16.",
        "",
        "```",
        documented_command("medsora.training.dino", sys.argv[1:]),
        "```",
        "",
        f"Linear probes on {options.unseen} clips of phantom seed {UNSEEN_SEED}, never trained on:",
        "",
        *markdown_table(["", *names], table, 1 + len(names)),
    ]
    write_text(options.out.with_suffix(".md"), "\n".join(note) + "\n")
    print("\n".join(note))
