"""Both training scripts as one of several processes, started by torchrun from test_two_processes.py.

python -m torch.distributed.run --standalone --nproc_per_node 2 -m tests.support.run_two_processes CONFIG OUT

Every process leaves in OUT the gradients of each stage's first step; process 0 the sentence of a run whose
loss is not finite in process 1 alone.
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path
from unittest import mock

from accelerate import PartialState
from safetensors.torch import save_file

import train_dit
import train_vae
from medsora.diffusion import DiffusionLoss, GaussianDiffusion
from medsora.errors import NonFiniteLoss
from tests.support import tiny_training as tiny

IMAGE_PRIOR = ("alignment.kind=image", "alignment.weight=0.5", "train_dit.max_steps=1")


def main() -> None:
    """Train stage 1, then stage 2, with both priors, then from a damaged checkpoint, then until a NaN."""
    config, out = sys.argv[1], Path(sys.argv[2])
    # One launch serves all: the processes stay together when a run ends.
    with mock.patch.object(PartialState, "destroy_process_group"):
        train_and_keep_gradients("vae", train_vae.main, config, out)
        train_and_keep_gradients("dit", train_dit.main, config, out)
        image_prior = ["run.name=image", f"vae.path={out / 'runs' / 'tiny' / 'vae'}", *IMAGE_PRIOR]
        train_and_keep_gradients("dit", train_dit.main, config, out, "image", *image_prior)
        tokenizer = [f"{key.replace('__', '.')}={value}" for key, value in tiny.TOKENIZER.items()]
        run(train_vae.main, config, "run.name=tokenizer", *tokenizer)
        process = PartialState()
        assert process.num_processes == 2, f"{process.num_processes} processes"
        if process.is_main_process:
            cut_newest_checkpoint(out / "runs" / "tiny" / "dit-tiny")
        process.wait_for_everyone()
        run(train_dit.main, config)
        try:
            with mock.patch.object(GaussianDiffusion, "hybrid_loss", poisoned_in_process_1()):
                vae = out / "runs" / "tiny" / "vae"
                run(train_dit.main, config, "run.name=poisoned", f"vae.path={vae}")
        except NonFiniteLoss as error:
            (out / f"non-finite-{process.process_index}.txt").write_text(str(error), encoding="utf-8")


def run(main: Callable[[], None], config: str, *overrides: str) -> None:
    """Call a script's `main` with its command line."""
    sys.argv = [main.__module__, "--config", config, *overrides]
    main()


def train_and_keep_gradients(
    stage: str, main: Callable[[], None], config: str, out: Path, name: str = "", *overrides: str
) -> None:
    """Run a stage; write the gradients of its first step, as this process's optimiser sees them."""
    with tiny.nothing_silent(), tiny.first_gradients(stage) as kept:
        run(main, config, *overrides)
    save_file(kept, out / f"{name or stage}-{PartialState().process_index}.safetensors")


def cut_newest_checkpoint(folder: Path) -> None:
    """Cut the averaged weights of a run's newest checkpoint in half."""
    newest = sorted((folder / "checkpoints").iterdir())[-1]
    victim = newest / "ema" / "diffusion_pytorch_model.safetensors"
    victim.write_bytes(victim.read_bytes()[: victim.stat().st_size // 2])


def poisoned_in_process_1() -> Callable:
    """Return `hybrid_loss` with a loss that is NaN in process 1."""
    compute = GaussianDiffusion.hybrid_loss

    def computed(self, *arguments, **options):
        out = compute(self, *arguments, **options)
        factor = float("nan") if PartialState().process_index else 1.0
        return DiffusionLoss(*(part * factor for part in out))

    return computed


if __name__ == "__main__":
    main()
