"""The command line of stage 2: `train_dit.py` and `medsora train-dit`."""

from __future__ import annotations

from collections.abc import Sequence


def main(arguments: Sequence[str] | None = None, prog: str | None = None) -> None:
    """Train the denoiser on the latents of the VAE that stage 1 left in the same run, or vae.path names."""
    from medsora.config.schema import STAGE_2
    from medsora.training.command_line import minutes_left, training_arguments

    config, options = training_arguments(
        "Stage 2: train the spiral-scan Mamba denoiser (§3.1, §3.2, §3.4) on the latents of stage 1's VAE.",
        STAGE_2,
        arguments,
        prog,
    )
    if options.dry_run:
        from medsora.training.dry_run.report import dry_run_denoiser

        return dry_run_denoiser(config, options.processes)
    from medsora.training.stage2.loop import train_dit

    train_dit(config, time_limit_minutes=minutes_left(options.time_limit))
