"""Turn a base VAE that `train_vae.py` trained into the files that ship: JSON config, fp16 weights, a note.

python -m medsora.training.export_base runs/phantom-base/vae configs/phantom_base

The note's figures are measured here, from the files as they were written, on phantom clips of another seed.
"""

from __future__ import annotations

import argparse
import shlex
import sys
from pathlib import Path

import torch

from medsora.data.phantom import clip_seed, render_clip
from medsora.data.reading.pixels import frames_to_video
from medsora.errors import building
from medsora.runtime.exit import exit_with_status
from medsora.runtime.files import write_text, written_beside
from medsora.saved.find import find_vae, load_vae
from medsora.training.run.folder import read_log
from medsora.vae import FrequencyCompensatedVAE
from medsora.vae.quality import flicker, mean_colour_psnr, psnr, sharpness, ssim

UNSEEN_SEED, FRAMES = 2, 17
DEFAULT_CLIPS, DEFAULT_SIZE_PX = 12, 64


def main() -> None:
    """Read the run, write OUT.json, OUT.safetensors and OUT.md."""
    parser = argparse.ArgumentParser(prog="python -m medsora.training.export_base", description=__doc__)
    parser.add_argument("run", type=Path, help="a stage 1 run folder that ended (RUN/final is there)")
    parser.add_argument("out", type=Path, help="where to write, without an ending")
    add = parser.add_argument
    add("--size", type=int, default=DEFAULT_SIZE_PX, metavar="PX", help="side of unseen clips (default: 64)")
    add("--clips", type=int, default=DEFAULT_CLIPS, metavar="N", help="unseen clips (default: 12)")
    options = parser.parse_args()
    with building():
        trained = load_vae(find_vae(options.run))
        config, weights = (options.out.with_suffix(ending) for ending in (".json", ".safetensors"))
        with written_beside(config) as its_config, written_beside(weights) as its_weights:
            trained.save_base(its_config, its_weights)
    shipped = FrequencyCompensatedVAE.from_base(config, weights=weights)
    figures = unseen_figures(shipped, options.clips, options.size)
    log = read_log(options.run)
    parameters = sum(parameter.numel() for parameter in trained.parameters())
    note = [
        "# The small base VAE of the phantom",
        "",
        "CogVideoX's architecture, trained from scratch on procedural phantom clips, on nobody's footage.",
        f"{parameters:,} parameters, {weights.stat().st_size:,} bytes in fp16.",
        "",
        f"The commands are at the top of `{options.out.name}.yaml`; the last of them wrote this note:",
        "",
        "```",
        shlex.join(["python", "-m", "medsora.training.export_base", *sys.argv[1:]]),
        "```",
        "",
        f"{max(line['step'] for line in log)} steps in the last run; seeds are in the config. On "
        f"{options.clips} clips of {FRAMES}x{options.size}x{options.size} of phantom seed {UNSEEN_SEED}, "
        "never trained on, decoded from the mean:",
        "",
        "| figure | value |",
        "|---|---|",
        *(f"| {name} | {value:.4g} |" for name, value in figures.items()),
    ]
    write_text(options.out.with_suffix(".md"), "\n".join(note) + "\n")
    print("\n".join(note))


@torch.no_grad()
def unseen_figures(
    vae: FrequencyCompensatedVAE, clips: int = DEFAULT_CLIPS, size_px: int = DEFAULT_SIZE_PX
) -> dict[str, float]:
    """Return mean metrics of `vae` on phantom clips of a seed that nothing in the repository trains on."""
    videos = torch.stack(
        [frames_to_video(render_clip(clip_seed(UNSEEN_SEED, k), FRAMES, size_px).video) for k in range(clips)]
    )
    copies = torch.cat([vae.decode(vae.encode(video[None])) for video in videos])
    return {
        "PSNR (dB)": float(psnr(copies, videos).mean()),
        "PSNR of each clip's mean colour (dB)": float(mean_colour_psnr(videos).mean()),
        "SSIM": float(ssim(copies, videos).mean()),
        "flicker": float(flicker(copies, videos).mean()),
        "sharpness (decades; 0: as the clips)": float(sharpness(copies, videos).mean()),
    }


if __name__ == "__main__":
    exit_with_status(main)
