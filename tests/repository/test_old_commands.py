"""medsora.runtime.moved, medsora.demo.__main__, medsora.evaluation.degradations,
medsora.evaluation.first_frame, medsora.evaluation.labels, medsora.evaluation.seams,
medsora.training.cache.__main__, medsora.kernels.bench: every `python -m` command that the pages have ever
shown still works, also where its module has moved.
"""

from __future__ import annotations

import pytest

from tests.support.commands import run_commands
from tests.support.paths import ROOT

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


def test_help_of_every_command() -> None:
    notes = {name: f"{new}'." for name, new in MOVED.items()} | dict.fromkeys(STAYED, "")
    found = {}
    for name, (status, page, errors) in zip(notes, run_commands([(n, "--help") for n in notes]), strict=True):
        found[name] = errors.strip().rpartition(" ")[2]
        assert (status, page.startswith("usage: ")) == (0, True), name
        if name in MOVED and name.startswith("medsora."):
            assert page.split()[1:4] == ["python", "-m", MOVED[name]]
    assert found == notes


@pytest.mark.parametrize("name", WITHOUT_OPTIONS)
def test_a_command_without_options_is_there(name: str) -> None:
    path = ROOT.joinpath(*name.split("."))
    module = path / "__main__.py" if path.is_dir() else path.with_suffix(".py")
    assert module.is_file()
