"""The command line of EndoGen's training: `medsora train-ar`."""

from __future__ import annotations

from collections.abc import Sequence


def main(arguments: Sequence[str] | None = None, prog: str | None = None) -> None:
    """Train EndoGen's transformer on the codes of the tokenizer that the config names."""
    from medsora.config.schema import STAGE_AR
    from medsora.training.command_line import minutes_left, training_arguments

    config, options = training_arguments(
        "Train EndoGen's transformer, a baseline, on the codes of a tokenizer (vae.kind: vq).",
        STAGE_AR,
        arguments,
        prog,
    )
    if options.dry_run:
        from medsora.training.ar.dry_run import dry_run_ar

        return dry_run_ar(config, options.processes)
    from medsora.training.ar.loop import train_ar

    train_ar(config, time_limit_minutes=minutes_left(options.time_limit))
