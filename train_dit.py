"""Stage 2: `accelerate launch train_dit.py --config configs/phantom.yaml --preset tiny [key=value ...]`."""

from __future__ import annotations

from medsora.name_guard import check_kernels_name

check_kernels_name()

from medsora.runtime.exit import exit_with_status  # noqa: E402


def main() -> None:
    """Train the denoiser on the latents of the VAE that stage 1 left in the same run, or vae.path names."""
    from medsora.training.command_line import minutes_left, training_arguments

    config, options = training_arguments(
        "Stage 2: train the spiral-scan Mamba denoiser (§3.1, §3.2, §3.4) on the latents of stage 1's VAE.",
        preset=True,
    )
    if options.dry_run:
        from medsora.training.dry_run.report import dry_run_dit

        return dry_run_dit(config, options.processes)
    from medsora.training.stage2.loop import train_dit

    train_dit(config, time_limit_minutes=minutes_left(options.time_limit))


if __name__ == "__main__":
    exit_with_status(main)
