"""`python -m medsora new PROJECT --data DIR`: check a folder of videos, write a config that fits it.

PROJECT/config.yaml         every line with its reason
PROJECT/contact-sheet.png   the clips as training will see them
"""

from __future__ import annotations

import argparse
import os
import shlex
from pathlib import Path

import psutil
import torch
from rich.console import Console
from rich.progress import Progress

from medsora.checkout import scripts_are_here
from medsora.config.load import config_from_dict, load_config
from medsora.data.checking.check import CheckReport, check_folder
from medsora.data.checking.view import check_sheet, check_totals
from medsora.data.sheet import SHEET_NAME, save_image
from medsora.errors import BadInput
from medsora.project.fit import Fit, Machine, fit_project, render_config
from medsora.runtime.files import write_text

CONFIG_NAME = "config.yaml"


def run(options: argparse.Namespace, console: Console) -> None:
    """Make the project and print the next commands; raises `BadInput` with one sentence."""
    name = options.project.resolve().name
    config_path = options.project / CONFIG_NAME
    if config_path.exists():
        raise BadInput(f"{config_path} is there already; take another name, or edit it.")
    if options.size is not None and (options.size < 16 or options.size % 16):
        raise BadInput(f"--size is {options.size} but must be a multiple of 16.")
    if (Path("runs") / name).exists():
        raise BadInput(f"runs/{name} holds a run of that name already; take another PROJECT.")
    if options.memory is not None and not 0 <= options.memory < 10_000:
        raise BadInput(f"--memory is {options.memory} but must be a number of GiB, or 0 for a CPU.")
    gpu_gib = _found_gpu_gib() if options.memory is None else options.memory
    machine = Machine(gpu_gib, os.cpu_count() or 1, psutil.virtual_memory().total / 2**30)
    with Progress(console=console, transient=True) as progress:
        task = progress.add_task("decoding", total=None)

        def check(frames: int, interval: int) -> CheckReport:
            return check_folder(
                options.data,
                frames=frames,
                interval=interval,
                crop="auto",
                on_progress=lambda done, total: progress.update(task, completed=done, total=total),
            )

        fit = fit_project(name, options.data, check, machine, size=options.size, preset=options.preset)
    report = check(fit.values["data"]["frames"] + 1, fit.values["data"]["interval"])
    config_from_dict(fit.values, str(config_path))
    trained_on = f"a GPU of {machine.gpu_gib:.0f} GiB" if machine.gpu_gib else "a CPU, end to end"
    heading = (
        f"Made by 'python -m medsora new' for {report.clips} clips from {options.data} and {trained_on}.\n"
        "Every value that is not here has its default, mostly the paper's: see docs/configuration.md."
    )
    try:
        save_image(options.project / SHEET_NAME, check_sheet(report, fit.values["data"]["size"]))
        write_text(config_path, render_config(fit, heading))
    except OSError as error:
        raise BadInput(str(error)) from error
    load_config(config_path)
    _report(console, report, fit, options.project)


def _found_gpu_gib() -> float:
    """Return the memory of the smallest CUDA device in GiB, 0 without one."""
    devices = range(torch.cuda.device_count())
    sizes = [torch.cuda.get_device_properties(device).total_memory / 2**30 for device in devices]
    return min(sizes, default=0.0)


def next_commands(project: Path, name: str, preset: str, *, stage_1: bool = True) -> list[str]:
    """Return the commands that follow, both stages and sampling: only a checkout has the scripts.

    `stage_1` is false where the VAE is used as it is.
    """
    train_vae, train_dit, sample = "-m medsora train-vae", "-m medsora train-dit", "medsora sample"
    if scripts_are_here():
        train_vae, train_dit, sample = "train_vae.py", "train_dit.py", "python sample_ddim.py"
    config = shlex.quote(str(project / CONFIG_NAME))
    run = shlex.quote(f"runs/{name}")
    return [
        *([f"accelerate launch {train_vae} --config {config}"] if stage_1 else []),
        f"accelerate launch {train_dit} --config {config}",
        f"{sample} --model {run}/dit-{preset} --num-videos 4 --steps 250 --out {run}/videos",
    ]


def _report(console: Console, report: CheckReport, fit: Fit, project: Path) -> None:
    def show(text: str) -> None:
        console.print(text, highlight=False, soft_wrap=True, markup=False)

    show(check_totals(report, remarks=False))
    for note in (*report.complaints(), *fit.notes):
        show(f"note: {note}")
    show(f"clips as training sees them: {project / SHEET_NAME}")
    show(f"config, a reason on every line: {project / CONFIG_NAME}")
    show("\nnext:")
    name, preset = fit.values["run"]["name"], fit.values["denoiser"]["preset"]
    for command in next_commands(project, name, preset, stage_1="train_vae" in fit.values):
        show(f"  {command}")
