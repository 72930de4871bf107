"""A missing package of an extra ends a command with one sentence that installs it."""

from __future__ import annotations

import re
import subprocess
import sys
import tomllib

import pytest

from medsora.runtime.exit import exit_with_status
from medsora.runtime.extras import EXTRAS, missing_package
from tests.support.paths import ROOT
from tests.support.patience import PATIENCE_S


def test_the_table_is_that_of_the_installation() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    for extra, names in EXTRAS.items():
        listed = project["optional-dependencies"][extra]
        assert tuple(re.split("[<>=]", name)[0].replace("-", "_") for name in listed) == names


def test_a_command_names_the_extra_and_leaves_with_status_2(capsys: pytest.CaptureFixture[str]) -> None:
    def main() -> None:
        raise ModuleNotFoundError("No module named 'timm.models'", name="timm.models")

    with pytest.raises(SystemExit) as left:
        exit_with_status(main)
    assert left.value.code == 2
    message = "error: this needs timm, which is not installed: pip install 'medsora[train]'.\n"
    assert capsys.readouterr().err == message


def test_evaluation_names_its_own_extra() -> None:
    with pytest.raises(ModuleNotFoundError) as found:
        exec(
            compile("import timm.nothing_of_this_name", "medsora/evaluation/run.py", "exec"),
            {"__name__": "medsora.evaluation.run"},
        )
    assert "medsora[eval]" in missing_package(found.value)


def test_any_other_missing_module_keeps_its_traceback() -> None:
    def main() -> None:
        raise ModuleNotFoundError("No module named 'medsora.nothing'", name="medsora.nothing")

    with pytest.raises(ModuleNotFoundError, match=r"medsora\.nothing"):
        exit_with_status(main)


def test_sampling_checking_and_new_need_no_extra() -> None:
    hidden = {name for names in EXTRAS.values() for name in names}
    modules = ("medsora.sampling.run", "medsora.data.__main__", "medsora.project.new")
    program = ("-m", "tests.support.installing.hidden_packages", ",".join(hidden), ",".join(modules))
    subprocess.run([sys.executable, *program], cwd=ROOT, timeout=PATIENCE_S, check=True)
