"""`python -m tools.run_docs_commands` (`make docs-check`): run every command that README and docs show.

Pages are walked in the order of the menu, blocks in the order of the page, all in one scratch copy of the
repository. Run are blocks in bash, sh and python. A block's first line may carry, as in
```{.bash data-skip="needs a GPU"} (which the pages' builder understands) or ```bash data-skip="needs a GPU",

    data-with="words"     words added to every command that calls Python: tiny overrides
    data-skip="reason"    the block is not run

A line with a placeholder (DIR, OWNER/NAME, ...) shows a form, not a command, and is not run. Blocks without a
language that look like commands are named at the end: nobody runs them.
"""

from __future__ import annotations

import argparse
import os
import re
import shutil
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path

import yaml

from tests.support.paths import ROOT

SHELL = ("bash", "sh")
OPENING = re.compile(r"^(?P<ticks>`{3,}) *\{? *\.?(?P<language>[\w+-]*)(?P<attributes>[^`]*)$")
ATTRIBUTE = re.compile(r'data-(with|skip)="([^"]*)"')
PYTHON = re.compile(r"^(?:\w+=\S+ )*(?:python|accelerate|torchrun)\b")
COMMAND = re.compile(r"^(?:\w+=\S+ )*(?:python|accelerate|torchrun|make|pip|uv|source|tensorboard|sbatch)\b")
PLACEHOLDER = re.compile(r"(?<![\w{$])[A-Z][A-Z_]+\b(?!=)|\.\.\.|…")
NOT_RUN = ("make ", "source ")  # the Makefile's targets run by themselves; the environment is active already
TIME_LIMIT_S = 1800


@dataclass(frozen=True)
class Block:
    """One fenced block: where it is, its language and lines, what its first line says about running it."""

    page: str
    line: int
    language: str
    text: str
    extra: str = ""
    skip: str = ""

    @property
    def commands(self) -> list[str]:
        """The shell commands in it, continued lines joined, comments and blank lines left out."""
        joined = self.text.replace("\\\n", " ")
        return [line for line in joined.splitlines() if line.strip() and not line.lstrip().startswith("#")]

    @property
    def script(self) -> str:
        """What is run; empty if nothing is."""
        if self.skip:
            return ""
        if self.language == "python":
            return self.text
        lines = []
        for command in self.commands:
            bare = re.split(r"\s+#\s", command)[0].rstrip()
            if bare.startswith(NOT_RUN) or PLACEHOLDER.search(bare):
                continue
            lines.append(f"{bare} {self.extra}".rstrip() if PYTHON.match(bare) else bare)
        return "\n".join(lines)

    @property
    def reason(self) -> str:
        """Why nothing of it is run."""
        return self.skip or "forms to fill in, or targets of the Makefile"


def blocks_of(path: Path) -> list[Block]:
    """Return the fenced blocks of a page. Raises `ValueError` for one that is not closed."""
    blocks, opening, start, lines = [], None, 0, []
    for number, line in enumerate(path.read_text(encoding="utf-8").splitlines(), start=1):
        if opening is None:
            opening, start, lines = OPENING.match(line), number, []
        elif line.strip() == opening["ticks"]:
            attributes = dict(ATTRIBUTE.findall(opening["attributes"]))
            blocks.append(
                Block(
                    path.name,
                    start,
                    opening["language"],
                    "\n".join(lines),
                    attributes.get("with", ""),
                    attributes.get("skip", ""),
                )
            )
            opening = None
        else:
            lines.append(line)
    if opening is not None:
        raise ValueError(f"{path}, line {start}: the block is not closed.")
    return blocks


def pages(root: Path = ROOT) -> list[Path]:
    """Return the pages in the menu's order, README last: it runs the same commands with the same names."""
    menu = yaml.safe_load((root / "mkdocs.yml").read_text(encoding="utf-8"))["nav"]
    listed = []
    while menu:
        ((_, entry),) = menu.pop(0).items()
        if isinstance(entry, list):  # a section
            menu[:0] = entry
        else:
            listed.append(root / "docs" / entry)
    return [*listed, root / "README.md"]


def is_run(block: Block) -> bool:
    """Whether the block is of a kind that is run at all."""
    return block.language in (*SHELL, "python")


def unlabelled(block: Block) -> bool:
    """Whether a block without a language holds commands."""
    return not block.language and any(COMMAND.match(command) for command in block.commands)


def run_block(block: Block, folder: Path) -> tuple[int, str]:
    """Run a block in `folder`; return its exit status and the end of its output."""
    home = Path(sys.executable).parent
    environment = os.environ | {"PATH": f"{home}{os.pathsep}{os.environ['PATH']}", "PYTHONPATH": str(folder)}
    program = [sys.executable, "-c"] if block.language == "python" else ["bash", "-euo", "pipefail", "-c"]
    try:
        done = subprocess.run(
            [*program, block.script],
            cwd=folder,
            env=environment,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            errors="replace",
            timeout=TIME_LIMIT_S,
        )
    except subprocess.TimeoutExpired:
        return 124, f"took longer than {TIME_LIMIT_S} s"
    return done.returncode, done.stdout[-3000:]


def _copy_repository(to: Path) -> None:
    """Copy what git tracks, and what it does not ignore, to `to`."""
    listed = subprocess.run(
        ["git", "ls-files", "--cached", "--others", "--exclude-standard", "-z"],
        cwd=ROOT,
        check=True,
        stdout=subprocess.PIPE,
        text=True,
    )
    for name in filter(None, listed.stdout.split("\0")):
        if (ROOT / name).is_file():
            (to / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy2(ROOT / name, to / name)


def main() -> int:
    """Walk the pages; return how many blocks failed."""
    parser = argparse.ArgumentParser(prog="python -m tools.run_docs_commands", description=__doc__)
    parser.add_argument("--pages", nargs="+", metavar="NAME", help="only these, such as data.md training.md")
    options = parser.parse_args()
    failed = ran = 0
    nobody: list[str] = []
    with tempfile.TemporaryDirectory(prefix="medsora-docs-") as scratch:
        _copy_repository(Path(scratch))
        for page in pages():
            if options.pages and page.name not in options.pages:
                continue
            for block in blocks_of(page):
                place = f"{block.page}:{block.line}"
                if unlabelled(block):
                    nobody.append(place)
                if not is_run(block):
                    continue
                if not block.script:
                    print(f"not run  {place}: {block.reason}", flush=True)
                    continue
                began = time.monotonic()
                status, output = run_block(block, Path(scratch))
                ran += 1
                word = "ok      " if status == 0 else "FAILED  "
                first = block.script.splitlines()[0]
                print(f"{word} {place} ({time.monotonic() - began:.0f} s): {first}", flush=True)
                if status:
                    failed += 1
                    print(f"{output}\n(status {status})", flush=True)
    if nobody:
        print(f"commands in blocks without a language, run by nobody: {', '.join(nobody)}")
    print(f"{ran} blocks run, {failed} failed")
    return failed


if __name__ == "__main__":
    sys.exit(1 if main() else 0)
