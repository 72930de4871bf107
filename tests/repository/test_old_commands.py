"""medsora.runtime.moved, medsora.demo.__main__, medsora.evaluation.degradations,
medsora.evaluation.first_frame, medsora.evaluation.labels, medsora.evaluation.seams,
medsora.training.cache.__main__, medsora.kernels.bench: every `python -m` command that the pages have ever
shown still works, also where its module has moved.
"""

from __future__ import annotations

import subprocess
import sys

import pytest

from tests.support.paths import ROOT
from tests.support.patience import PATIENCE_S

MOVED = {
    "kernels.bench": "benchmarks.kernels",
    "medsora.evaluation.degradations": "medsora.evaluation.sanity.degradations",
    "medsora.evaluation.first_frame": "medsora.evaluation.conditional.first_frame",
    "medsora.evaluation.labels": "medsora.evaluation.conditional.labels",
    "medsora.evaluation.seams": "medsora.evaluation.conditional.seams",
    "medsora.training.cache": "medsora.training.fill_caches",
    "tests.audit": "tools.audit",
    "tests.kernels.compile_triton": "tests.support.triton.compile_triton",
    "tests.run_docs_commands": "tools.run_docs_commands",
}
STAYED = (
    "medsora.app",
    "medsora.data",
    "medsora.demo",
    "medsora.training.export_base",
    "benchmarks.cost",
    "benchmarks.gpu",
    "benchmarks.growth",
    "benchmarks.length",
    "benchmarks.phantom",
    "benchmarks.sample",
    "benchmarks.scan",
    "benchmarks.train",
    "tests.faults",
)
WITHOUT_OPTIONS = ("benchmarks.page", "medsora.denoiser", "tests.measure_memory")
# In one process, because most of a command's start is the import of torch.
HELP = """
import contextlib, io, runpy, sys
for name in sys.argv[1:]:
    sys.argv = [name, "--help"]
    page, note, status = io.StringIO(), io.StringIO(), None
    try:
        with contextlib.redirect_stdout(page), contextlib.redirect_stderr(note):
            runpy.run_module(name, run_name="__main__", alter_sys=True)
    except SystemExit as end:
        status = end.code
    moved = note.getvalue().strip().rpartition(" ")[2]
    print(name, status, page.getvalue().startswith("usage: "), moved, sep="|")
"""


def test_help_of_every_command() -> None:
    done = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", HELP, *MOVED, *STAYED],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=PATIENCE_S,
        check=True,
    )
    notes = {name: f"{new}'." for name, new in MOVED.items()} | dict.fromkeys(STAYED, "")
    assert done.stdout.splitlines() == [f"{name}|0|True|{note}" for name, note in notes.items()]


@pytest.mark.parametrize("name", WITHOUT_OPTIONS)
def test_a_command_without_options_is_there(name: str) -> None:
    path = ROOT.joinpath(*name.split("."))
    module = path / "__main__.py" if path.is_dir() else path.with_suffix(".py")
    assert module.is_file()
