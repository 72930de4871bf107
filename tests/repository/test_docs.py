"""tools.run_docs_commands: the pages are true as far as reading can tell: links, files, keys, messages; and
every command is run.
"""

from __future__ import annotations

import os
import re
import subprocess
import sys
from dataclasses import fields, is_dataclass
from pathlib import Path
from typing import get_type_hints

import pytest

from medsora.config.load import load_config
from medsora.config.schema import Config
from tools.run_docs_commands import ROOT, Block, blocks_of, is_run, pages, run_block, unlabelled

# Words with a letter or a digit, code and tables included; a limit is raised only for a new topic.
MAX_WORDS = {
    "README": 900,
    "ablation": 1200,
    "api": 50,
    "clusters": 580,
    "comparison": 600,
    "conditional": 940,
    "data": 1290,
    "downstream": 900,
    "endogen": 900,
    "endora": 850,
    "evaluation": 3450,
    "extending": 310,
    "fidelity": 1200,
    "gpu-run": 650,
    "index": 150,
    "install": 270,
    "performance": 2450,
    "reliability": 1450,
    "sampling": 470,
    "tour": 200,
    "training": 690,
    "troubleshooting": 650,
}
PAGES = sorted((ROOT / "docs").glob("*.md"))
WITHOUT_CODE = re.compile(r"^```.*?^```|`[^`\n]*`", re.DOTALL | re.MULTILINE)
SOURCES = [
    path
    for folder in (".", "medsora", "vae", "flow_prior", "kernels")
    for path in (ROOT.glob("*.py") if folder == "." else (ROOT / folder).rglob("*.py"))
]


@pytest.mark.parametrize("page", [*PAGES, ROOT / "README.md"], ids=lambda page: page.name)
def test_links_lead_to_files(page: Path) -> None:
    text = WITHOUT_CODE.sub("", page.read_text(encoding="utf-8"))
    targets = re.findall(r"\]\(([^)#\s]+)", text)
    local = [target for target in targets if "://" not in target]
    assert [target for target in local if not (page.parent / target).is_file()] == []


@pytest.mark.parametrize("page", [*PAGES, ROOT / "README.md"], ids=lambda page: page.name)
def test_files_named_in_the_text_are_there(page: Path) -> None:
    text = page.read_text(encoding="utf-8")
    named = re.findall(r"`((?:medsora|vae|flow_prior|kernels|configs|tests)/[\w/]+\.(?:py|yaml))`", text)
    assert [name for name in named if not (ROOT / name).exists()] == []


def test_every_page_is_in_the_menu() -> None:
    listed = [page for page in pages() if page.name != "README.md"]
    assert sorted(listed) == PAGES, "mkdocs.yml's nav and the folder docs do not hold the same pages"


def test_pages_keep_to_their_word_limits() -> None:
    """Print the words of every hand-written page (`-s` shows them); compare with the limits."""
    texts = {page.stem: page.read_text(encoding="utf-8") for page in pages()}
    counts = {
        name: sum(bool(re.search(r"\w", word)) for word in text.split())
        for name, text in texts.items()
        if name != "configuration"  # generated
    }
    table = "\n".join(f"{name:16}{count:6} of {MAX_WORDS.get(name, 0)}" for name, count in counts.items())
    print(f"{table}\n{'all pages':16}{sum(counts.values()):6}")
    assert sorted(counts) == sorted(MAX_WORDS)
    assert [name for name, count in counts.items() if count > MAX_WORDS[name]] == []


def test_the_site_builds_without_a_warning(tmp_path: Path) -> None:
    pytest.importorskip("mkdocstrings")
    command = [sys.executable, "-m", "mkdocs", "build", "--strict", "--quiet", "--site-dir", str(tmp_path)]
    done = subprocess.run(
        command,
        cwd=ROOT,
        env=os.environ | {"NO_MKDOCS_2_WARNING": "1"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert (done.returncode, done.stderr) == (0, "")
    assert "from_pretrained" in (tmp_path / "api.html").read_text(encoding="utf-8")


def fidelity_rows() -> dict[str, str]:
    """The rows of docs/fidelity.md that name `phantom.yaml`, by each key of their last column."""
    page = (ROOT / "docs" / "fidelity.md").read_text(encoding="utf-8")
    rows = [line for line in page.splitlines() if line.startswith("|") and "phantom" in line]
    keys = [(re.findall(r"`([a-z_.0-9]+)[`:]", row.rsplit("|", 2)[-2]), row) for row in rows]
    section = ""
    found = {}
    for named, row in keys:
        for key in named:
            section = key.split(".")[0] or section  # `train_dit.phases`, `.lr_decay`
            found[section + key if key.startswith(".") else key] = row
    return found


def test_the_fidelity_page_says_what_the_phantom_s_configs_say() -> None:
    rows = fidelity_rows()
    phantom, base = (load_config(ROOT / "configs" / f"{name}.yaml") for name in ("phantom", "phantom_base"))
    numbers = {
        key: float(number.group(1))
        for key, row in rows.items()
        if (number := re.search(r"`phantom\.yaml` (\d[\d.e-]*)", row)) and key != "images.encoding"
    }
    assert numbers == {
        "train_vae.lr": phantom.train_vae.lr,
        "data.frames": phantom.data.frames,
        "images.count": phantom.images.count,
        "train_dit.ema_decay": phantom.train_dit.ema_decay,
    }
    assert f"to a standard deviation of {base.train_vae.latent_std:g}" in rows["train_vae.latent_std"]
    how = (ROOT / "configs" / "phantom_base.yaml").read_text(encoding="utf-8")  # its stages are overrides
    assert ("train_vae.coarse=0." in how) == ("the small phantom base adds" in rows["train_vae.coarse"])
    assert (phantom.vae.base, phantom.images.encoding) == ("configs/phantom_base.json", "single")
    assert (phantom.denoiser.prediction, phantom.train_dit.error_of) == ("velocity", "velocity")
    assert "`phantom.yaml` predicts v" in rows["denoiser.prediction"]
    assert phantom.train_dit.matmul == "medium", rows["train_dit.matmul"]
    assert (len(phantom.train_dit.phases), phantom.train_dit.lr_decay) == (1, "cosine")
    assert "`phantom.yaml` one phase with a cosine decay" in rows["train_dit.lr_decay"]


def known_keys() -> set[str]:
    return {
        f"{section.name}.{key.name}"
        for section in fields(Config)
        for kind in [get_type_hints(Config)[section.name]]
        if is_dataclass(kind)
        for key in fields(kind)
    }


@pytest.mark.parametrize("page", [*PAGES, ROOT / "README.md"], ids=lambda page: page.name)
def test_keys_named_on_the_pages_exist(page: Path) -> None:
    sections = "|".join(section.name for section in fields(Config))
    text = page.read_text(encoding="utf-8")
    named = set(re.findall(rf"(?<![\w./])((?:{sections})\.[a-z_0-9]+)\b(?!\.|/|\()", text))
    keys = {
        key for key in named if not key.endswith((".py", ".md", ".yaml")) and f"medsora.{key}" not in text
    }
    assert keys - known_keys() == set()


def test_messages_in_troubleshooting_are_those_of_the_code() -> None:
    page = (ROOT / "docs" / "troubleshooting.md").read_text(encoding="utf-8")
    headings = re.findall(r"^### `(.+)`$", page, re.MULTILINE)
    assert len(headings) > 15
    # Sentences are often split over lines: join neighbouring string literals, drop what is put in.
    code = "".join(path.read_text(encoding="utf-8") for path in SOURCES)
    joined = re.sub(r'"\s*\n\s*f?"', "", code)
    foreign = {
        "CUDA out of memory",
        "The following values were not passed to accelerate launch",
        "CalledProcessError",
    }
    assert [heading for heading in headings if heading not in joined and heading not in foreign] == []


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_every_command_is_run_or_says_why_not(page: Path) -> None:
    for block in blocks_of(page):
        if is_run(block) and not block.script:
            assert block.reason


def test_the_walk_runs_the_whole_road() -> None:
    scripts = "\n".join(block.script for page in pages() for block in blocks_of(page) if is_run(block))
    for command in (
        "medsora.data phantom", "medsora.data check", "medsora new", "train_vae.py", "train_dit.py",
        "sample_ddim.py", "evaluate.py", "medsora export",
    ):  # fmt: skip
        assert command in scripts, command


# The runner itself


def parsed(tmp_path: Path, text: str) -> list[Block]:
    page = tmp_path / "page.md"
    page.write_text(text, encoding="utf-8")
    return blocks_of(page)


def test_blocks_are_read_with_what_their_first_line_says(tmp_path: Path) -> None:
    with_words, skipped, form, plain, silent = parsed(
        tmp_path,
        '```bash data-with="--steps 2"\n'
        "python a.py --model \\\n  run  # a remark\nX=1 python b.py\nls\n```\n"
        '```{.bash data-skip="needs a GPU"}\npython a.py\n```\n'
        "```sh\npython a.py --real DIR\nmake test\npython b.py ...\n```\n"
        "```\npython a.py\n```\n"
        "```text\nmedsora/\n```\n",
    )
    words = "python a.py --model run --steps 2\nX=1 python b.py --steps 2\nls"
    assert " ".join(with_words.script.split()) == " ".join(words.split())
    assert (skipped.script, skipped.reason) == ("", "needs a GPU")
    assert form.script == ""
    assert [unlabelled(block) for block in (with_words, plain, silent)] == [False, True, False]
    with pytest.raises(ValueError, match="is not closed"):
        parsed(tmp_path, "```bash\nls\n")


def test_a_block_that_fails_is_told_with_what_it_said(tmp_path: Path) -> None:
    good, bad = parsed(
        tmp_path, "```bash\ncd . && echo fine > here\n```\n```bash\necho oh; false; echo no\n```\n"
    )
    assert run_block(good, tmp_path) == (0, "")
    assert (tmp_path / "here").is_file()
    assert run_block(bad, tmp_path) == (1, "oh\n")
    (code,) = parsed(tmp_path, "```python\nprint(1 + 1)\n```\n")
    assert run_block(code, tmp_path) == (0, "2\n")
