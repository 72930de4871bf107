"""The command line of stage 1: `train_vae.py` and `medsora train-vae`."""

from __future__ import annotations

from collections.abc import Sequence


def main(arguments: Sequence[str] | None = None, prog: str | None = None) -> None:
    """Fine-tune the frequency-compensated VAE on the clips that the config names."""
    from medsora.config.schema import STAGE_1
    from medsora.training.command_line import minutes_left, training_arguments

    config, options = training_arguments(
        "Stage 1: fine-tune the frequency-compensated VAE (§3.3). The result is RUN/vae/final.",
        STAGE_1,
        arguments,
        prog,
    )
    if options.dry_run:
        from medsora.training.dry_run.report import dry_run_vae

        return dry_run_vae(config, options.processes)
    from medsora.training.stage1.loop import train_vae

    train_vae(config, time_limit_minutes=minutes_left(options.time_limit))
