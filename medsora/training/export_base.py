"""Turn a base VAE or a tokenizer that `train_vae.py` trained into the files that ship: config, weights, note.

python -m medsora.training.export_base runs/phantom-base/vae configs/phantom_base
python -m medsora.training.export_base runs/phantom-tokenizer/vae configs/phantom_tokenizer

With `--average WEIGHTS` what ships is the weighted mean of the run's weights and those it began with ("Robust
fine-tuning of zero-shot models", Wortsman et al. 2022): a decoder that was trained to be sharp keeps more of
the PSNR it had.

OUT.json is the config, OUT.safetensors are the weights in fp16. The metrics in OUT.md are measured here, on
the files as they were written, on phantom clips of another seed.
"""

from __future__ import annotations

import argparse
import math
import sys
from pathlib import Path

import torch

from medsora.baselines.endogen.grid import frames_to_grid
from medsora.data.phantom import clip_seed, render_clip
from medsora.data.reading.pixels import frames_to_video
from medsora.errors import BadInput, bad_input_from_errors, check_limits
from medsora.flow_prior.weights import read_weights, save_weights
from medsora.runtime.exit import exit_with_status
from medsora.runtime.files import write_text, written_beside
from medsora.runtime.markdown import markdown_table
from medsora.saved.find import find_vae, load_vae
from medsora.training.command_line import documented_command, number_between
from medsora.training.run.folder import read_log
from medsora.training.stage1.tokenizer import perplexity
from medsora.vae import FrequencyCompensatedVAE, VQTokenizer
from medsora.vae.base import load_base
from medsora.vae.quality import flicker, mean_colour_psnr, psnr, sharpness, ssim

UNSEEN_SEED, FRAMES = 2, 17
GRID = 4  # rows and columns of the frames whose codes EndoGen writes
DEFAULT_CLIPS, DEFAULT_SIZE_PX = 12, 64
KINDS = (FrequencyCompensatedVAE.__name__, VQTokenizer.__name__)
WHAT_IT_IS = {  # title and origin
    FrequencyCompensatedVAE: ("base VAE", "CogVideoX's architecture"),
    VQTokenizer: ("tokenizer", "LlamaGen's VQ-16 made small, with a normalised codebook"),
}


def main() -> None:
    """Read the run, write OUT.json, OUT.safetensors and OUT.md."""
    parser = argparse.ArgumentParser(prog="python -m medsora.training.export_base", description=__doc__)
    parser.add_argument("run", type=Path, help="a stage 1 run folder that ended (RUN/final is there)")
    parser.add_argument("out", type=Path, help="where to write, without a suffix")
    add = parser.add_argument
    add("--size", type=int, default=DEFAULT_SIZE_PX, metavar="PX", help="side of unseen clips (default: 64)")
    add("--clips", type=int, default=DEFAULT_CLIPS, metavar="N", help="unseen clips (default: 12)")
    add(
        "--unquantised",
        type=Path,
        metavar="RUN",
        help="a run with vae.quantize=false, whose metrics the note of a tokenizer compares",
    )
    add("--average", type=Path, metavar="WEIGHTS", help="a base's weights to average with the run's")
    share = number_between(0, 1, "a number between 0 and 1")
    add("--share", type=share, metavar="X", help="weight of the run in that mean; needed with --average")
    options = parser.parse_args()
    if (options.average is None) != (options.share is None):
        raise BadInput("--average WEIGHTS and --share X belong together: give both, or neither.")
    check_limits(options, {"clips": (1, math.inf)})
    with bad_input_from_errors():
        folder = find_vae(options.run, kinds=KINDS)
        trained, log = load_vae(folder), read_log(folder.parent)
        if not log:
            raise BadInput(f"{folder.parent} has no log.jsonl: give a run of stage 1 (runs/NAME/vae).")
        rival = _rival(trained, options)
        trained.check_video_shape(FRAMES, options.size, options.size)
        if options.average is not None:
            average(trained, options.average, options.share)
        config, weights = (options.out.with_suffix(ending) for ending in (".json", ".safetensors"))
        with written_beside(config) as its_config, written_beside(weights) as its_weights:
            trained.save_base(its_config, its_weights)
            save_weights(read_weights(its_weights), its_weights)  # with a digest
    shipped = type(trained).from_base(config, weights=weights)
    metrics = unseen_metrics(shipped, options.clips, options.size)
    columns = {"value": metrics}
    if rival is not None:
        other = unseen_metrics(rival, options.clips, options.size)
        columns = {"tokenizer": metrics, "without quantisation": other}
    rows = [[n, *(f"{c[n]:.4g}" if n in c else "" for c in columns.values())] for n in metrics]
    title, origin = WHAT_IT_IS[type(trained)]
    parameters = sum(parameter.numel() for parameter in trained.parameters())
    size_bytes = weights.stat().st_size
    note = [
        f"# The small {title} of the phantom",
        "",
        f"{origin}, trained from scratch on procedural phantom clips, on nobody's footage.",
        f"{parameters:,} parameters, {size_bytes:,} bytes ({size_bytes / 2**20:.2f} MiB) in fp16.",
        "",
        f"The commands are at the top of `{options.out.name}.yaml`; the last of them wrote this note:",
        "",
        "```",
        documented_command("medsora.training.export_base", sys.argv[1:]),
        "```",
        "",
        f"{max(line['step'] for line in log)} steps in the last run; seeds are in the config. On "
        f"{options.clips} clips of {FRAMES}x{options.size}x{options.size} of phantom seed {UNSEEN_SEED}, "
        f"never trained on, {'from their codes' if 'codes used' in metrics else 'decoded from the mean'}:",
        "",
        *markdown_table(["metric", *columns], rows, 1 + len(columns)),
    ]
    write_text(options.out.with_suffix(".md"), "\n".join(note) + "\n")
    print("\n".join(note))


@torch.no_grad()
def average(
    trained: FrequencyCompensatedVAE | VQTokenizer, weights: str | Path, share_of_trained: float
) -> None:
    """Replace the base's weights w by share w + (1 - share) w', with w' of the safetensors file `weights`.

    Raises `ValueError` for weights of another base.
    """
    before = load_base(trained.base_settings(), weights, type(trained.base)).state_dict()
    for name, parameter in trained.base_state_dict().items():
        parameter.lerp_(before[name], 1 - share_of_trained)


def _rival(trained: FrequencyCompensatedVAE | VQTokenizer, options: argparse.Namespace) -> VQTokenizer | None:
    """Return the autoencoder of `--unquantised`, if it is given. Raises `BadInput` if the two do not fit."""
    if isinstance(trained, VQTokenizer) and not trained.config.quantize:
        raise BadInput(
            f"{options.run} was trained without quantisation, so it has no codes to ship; give it as "
            "--unquantised beside a tokenizer."
        )
    if options.unquantised is None:
        return None
    if not isinstance(trained, VQTokenizer):
        raise BadInput(f"{options.run} is no tokenizer: leave --unquantised out.")
    rival = load_vae(find_vae(options.unquantised, kinds=KINDS[1:]))
    if rival.config.quantize or rival.base_settings() != trained.base_settings():
        raise BadInput(
            f"{options.unquantised} is not {options.run} without quantisation; train it by the same config "
            "with run.name=NAME vae.quantize=false."
        )
    return rival


@torch.no_grad()
def unseen_metrics(
    vae: FrequencyCompensatedVAE | VQTokenizer, clips: int = DEFAULT_CLIPS, size_px: int = DEFAULT_SIZE_PX
) -> dict[str, float]:
    """Return mean metrics of `vae` on phantom clips of a seed that nothing in the repository trains on.

    For a tokenizer also those of the first frames as a grid, and the use of its codes if it has any.
    """
    videos = torch.stack(
        [frames_to_video(render_clip(clip_seed(UNSEEN_SEED, k), FRAMES, size_px).video) for k in range(clips)]
    )
    copies = torch.cat([vae.reconstruct(video[None]) for video in videos])
    metrics = {
        "PSNR (dB)": float(psnr(copies, videos).mean()),
        "PSNR of each clip's mean colour (dB)": float(mean_colour_psnr(videos).mean()),
        "SSIM": float(ssim(copies, videos).mean()),
        "flicker": float(flicker(copies, videos).mean()),
        "sharpness (decades; 0: as the clips)": float(sharpness(copies, videos).mean()),
    }
    if isinstance(vae, VQTokenizer):
        grids = frames_to_grid(videos[:, : GRID**2], GRID, GRID)[:, None]
        in_grids = psnr(vae.reconstruct(grids), grids).mean()
        metrics[f"PSNR in grids of {GRID}x{GRID} frames (dB)"] = float(in_grids)
        if vae.config.quantize:
            codes = vae.encode(videos)
            metrics["codes used"] = len(codes.unique())
            metrics["part of the codebook used"] = len(codes.unique()) / vae.num_codes
            metrics["perplexity of the codes"] = perplexity(codes)
    return metrics


if __name__ == "__main__":
    exit_with_status(main)
