"""Stage 1: `accelerate launch train_vae.py --config configs/phantom.yaml [key=value ...]`."""

from __future__ import annotations

from medsora.name_guard import check_kernels_name

check_kernels_name()

from medsora.runtime.exit import exit_with_status  # noqa: E402


def main() -> None:
    """Fine-tune the frequency-compensated VAE on the clips that the config names."""
    from medsora.training.command_line import minutes_left, training_arguments

    config, options = training_arguments(
        "Stage 1: fine-tune the frequency-compensated VAE (§3.3). The result is RUN/vae/final."
    )
    if options.dry_run:
        from medsora.training.dry_run.report import dry_run_vae

        return dry_run_vae(config, options.processes)
    from medsora.training.stage1.loop import train_vae

    train_vae(config, time_limit_minutes=minutes_left(options.time_limit))


if __name__ == "__main__":
    exit_with_status(main)
