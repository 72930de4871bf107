"""tools.run_docs_commands: the pages are true as far as reading can tell: links, files, keys, messages; and
every command is run.
"""

from __future__ import annotations

import os
import re
import shlex
import subprocess
import sys
from dataclasses import fields, is_dataclass
from pathlib import Path
from typing import get_type_hints
from unittest import mock

import pytest
import torch

from medsora.__main__ import parser
from medsora.config.load import load_config
from medsora.config.schema import STAGE_1, STAGE_2, STAGE_AR, Config
from medsora.data.__main__ import parser as data_parser
from medsora.evaluation.command import make_parser as evaluation_parser
from medsora.evaluation.conditional import labels
from medsora.evaluation.settings import EvaluationSettings
from medsora.runtime.files import END_MARK
from medsora.sampling.command import make_parser as sampling_parser
from medsora.sampling.run import SamplingSettings
from medsora.training import open_clips
from medsora.training.ar.build import build_transformer
from medsora.training.command_line import training_arguments
from medsora.training.stage2.build import build_denoiser
from medsora.vae import VQTokenizer
from tools.run_docs_commands import ROOT, Block, blocks_of, is_run, pages, run_block, unlabelled

# Words with a letter or a digit, code and tables included; a limit is raised only for a new topic.
MAX_WORDS = {
    "README": 900,
    "ablation": 530,
    "api": 50,
    "clusters": 390,
    "comparison": 430,
    "conditional": 560,
    "data": 600,
    "downstream": 800,
    "endogen": 510,
    "endora": 380,
    "evaluation": 850,
    "extending": 320,
    "fidelity": 900,
    "gpu-run": 290,
    "index": 110,
    "install": 230,
    "performance": 670,
    "reliability": 510,
    "sampling": 330,
    "tour": 180,
    "training": 390,
    "troubleshooting": 420,
}
MAX_WORDS_IN_ALL = 10_000
PAGES = sorted((ROOT / "docs").glob("*.md"))
TRAININGS = {"train_vae.py": STAGE_1, "train_dit.py": STAGE_2, "train-ar": STAGE_AR}
# Former names and sentences, replaced by plain ones; former names of keys still load (`was` in the schema).
RETIRED = re.compile(
    r"losses_said|DitStage|DitInputs|\berror_of\b|clip_from_epoch|\bmatmul:|train_dit\.matmul\b|\b_How\b"
    r"|\b(MOST|LEAST|FEWEST|LONGEST|OLDEST)_[A-Z]|training[/.]setup\b|processes import .*\b(part|join)\b"
    r"|def (look|sent|building)\(|\b(how|asked|told|made_by|ways|walks) = "
    r"|whole road|next to nothing|teach(es)? nothing|goes on from there|0 done; 1 failed"
    r"|how strongly they follow|videos shall show|whatever comes|Asking for something|Paper against code"
    r"|What there is to watch|Held-out figures|gone on with|(cannot|can) be had|marks stand still"
    r"|names and dates too|Of 2: with|Whoever asks|never happened|have been proved"
)
OLD_KEYS = (
    "tests/support/make_old_run.py",
    "tests/medsora/config/test_load.py",
    "tests/repository/test_docs.py",
)
TEXTS = {".py", ".md", ".yaml", ".yml", ".toml", ".ipynb", ".sh", ".slurm", ""}
WITHOUT_CODE = re.compile(r"^```.*?^```|`[^`\n]*`", re.DOTALL | re.MULTILINE)
SOURCES = [
    path
    for folder in (".", "medsora", "vae", "flow_prior", "kernels")
    for path in (ROOT.glob("*.py") if folder == "." else (ROOT / folder).rglob("*.py"))
]


def test_retired_names_and_sentences_do_not_return() -> None:
    listed = subprocess.run(["git", "ls-files"], cwd=ROOT, capture_output=True, text=True, check=False)
    if listed.returncode:
        pytest.skip("not a git checkout")
    paths = [ROOT / name for name in listed.stdout.splitlines() if name not in (*OLD_KEYS, "CHANGELOG.md")]
    lines = [
        (path, line.strip())
        for path in paths
        if path.suffix in TEXTS and path.is_file()
        for line in path.read_text(encoding="utf-8").splitlines()
        if RETIRED.search(line)
    ]
    assert [f"{path.relative_to(ROOT)}: {line}" for path, line in lines if "was=" not in line] == []


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


def by_hand(page: str) -> str:
    """A page without what commands write between their marks."""
    *written, rest = page.split(END_MARK)
    return "".join(part.rpartition("-->")[0] for part in written) + rest


def test_pages_keep_to_their_word_limits() -> None:
    """Print the words of every hand-written page (`-s` shows them); compare with the limits."""
    texts = {page.stem: by_hand(page.read_text(encoding="utf-8")) for page in pages()}
    counts = {
        name: sum(bool(re.search(r"\w", word)) for word in text.split())
        for name, text in texts.items()
        if name != "configuration"  # generated
    }
    table = "\n".join(f"{name:16}{count:6} of {MAX_WORDS.get(name, 0)}" for name, count in counts.items())
    print(f"{table}\n{'all pages':16}{sum(counts.values()):6} of {MAX_WORDS_IN_ALL}")
    assert sorted(counts) == sorted(MAX_WORDS)
    assert [name for name, count in counts.items() if count > MAX_WORDS[name]] == []
    assert sum(counts.values()) <= MAX_WORDS_IN_ALL


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


def test_the_fidelity_page_agrees_with_the_phantom_s_configs() -> None:
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
    text = (ROOT / "configs" / "phantom_base.yaml").read_text(encoding="utf-8")  # its stages are overrides
    assert ("train_vae.coarse=0." in text) == ("the small phantom base adds" in rows["train_vae.coarse"])
    assert (phantom.vae.base, phantom.images.encoding) == ("configs/phantom_base.json", "single")
    assert (phantom.denoiser.prediction, phantom.train_dit.loss_target) == ("velocity", "velocity")
    assert "`phantom.yaml` predicts v" in rows["denoiser.prediction"]
    assert phantom.train_dit.matmul_precision == "medium", rows["train_dit.matmul_precision"]
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
        key
        for key in named
        if not key.endswith((".py", ".md", ".yaml", ".json")) and f"medsora.{key}" not in text
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
def test_every_command_is_run_or_has_a_reason(page: Path) -> None:
    for block in blocks_of(page):
        if is_run(block) and not block.script:
            assert block.reason


def test_the_walkthrough_covers_the_workflow() -> None:
    scripts = "\n".join(block.script for page in pages() for block in blocks_of(page) if is_run(block))
    for command in (
        "medsora.data phantom", "medsora.data check", "medsora new", "train_vae.py", "train_dit.py",
        "sample_ddim.py", "evaluate.py", "medsora export",
    ):  # fmt: skip
        assert command in scripts, command


# Walkthroughs that take hours and are not run


def on_paper(page: str, mark: str, written: set[str]) -> list[Config]:
    """Parse the commands of the page's block that holds `mark`; return the configs that they train.

    `written` are the paths that are there; each command may read these and what those before it write.
    """
    (block,) = (block for block in blocks_of(ROOT / "docs" / page) if is_run(block) and mark in block.text)
    configs = []
    for command in block.commands:
        line = re.sub(r"^\s*(time |accelerate launch -m )?", "", command).replace("$label", "polyp")
        if line.startswith(("for ", "done")):
            continue
        _, name, *words = shlex.split(line.replace("accelerate launch", "python"))
        if name in TRAININGS:
            config, _ = training_arguments("", TRAININGS[name], words)
            configs.append(config)
            assert config.vae.kind == "causal" or name == "train_vae.py" or config.vae.path in written
            written |= {str(config.folder(TRAININGS[name])), str(config.run_dir)}
            written.add(training_clips(config))
        elif name == "sample":
            settings = SamplingSettings(**vars(sampling_parser().parse_args(words)))
            assert settings.model in written
            written.add(str(settings.out))
        elif name == "evaluate.py":
            options = vars(evaluation_parser().parse_args(words))
            assert {options["real"], *options["fake"]} <= written
            names = [options.pop(key) for key in ("names", "fake")]
            assert EvaluationSettings(fake=names[1][0], **options).label == "polyp"
        elif name == "export":
            assert str(parser().parse_args(["export", *words]).run) in written
        elif words[0] == "medsora.data":
            written.add(str(data_parser().parse_args(words[1:]).folder))
        else:
            assert words[0] == "medsora.evaluation.conditional.labels"
            assert words[words.index("--model") + 1] in written
            measured = mock.patch.object(labels, "measure", return_value=0)
            with mock.patch.object(sys, "argv", words), measured as measure, pytest.raises(SystemExit):
                labels.main()
            measure.assert_called_once()
    return configs


def training_clips(config: Config) -> str:
    """The folder of clips that a config trains on."""
    with mock.patch.object(open_clips, "write_phantom"):
        return str(open_clips.clip_folder(config))


def test_the_comparison_by_label_can_be_run_and_counts_parameters_right() -> None:
    configs = on_paper("comparison.md", "for label in", set())
    assert len(configs) == 5
    with torch.device("meta"):
        first, second = (build_denoiser(config, 16, 3) for config in configs[1:3])
        third = build_transformer(configs[4], VQTokenizer.from_preset("phantom"), 3)
    counts = " | ".join(f"{model.num_parameters():,}" for model in (third, first, second))
    assert f"| {counts} |" in (ROOT / "docs" / "comparison.md").read_text(encoding="utf-8")


def test_endogen_on_one_s_own_folder_takes_five_commands() -> None:
    tokenizer, transformer = on_paper("endogen.md", "data.root=datasets/mine", {"datasets/mine"})
    assert tokenizer.vae.kind == "vq"
    assert transformer.vae.path == str(tokenizer.run_dir)
    assert tokenizer.data.root == transformer.data.root == "datasets/mine"
    assert tokenizer.data.size == transformer.data.size


# The runner itself


def parsed(tmp_path: Path, text: str) -> list[Block]:
    page = tmp_path / "page.md"
    page.write_text(text, encoding="utf-8")
    return blocks_of(page)


def test_blocks_are_read_with_their_first_line(tmp_path: Path) -> None:
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


def test_a_failing_block_is_reported_with_its_output(tmp_path: Path) -> None:
    good, bad = parsed(
        tmp_path, "```bash\ncd . && echo fine > here\n```\n```bash\necho oh; false; echo no\n```\n"
    )
    assert run_block(good, tmp_path) == (0, "")
    assert (tmp_path / "here").is_file()
    assert run_block(bad, tmp_path) == (1, "oh\n")
    (code,) = parsed(tmp_path, "```python\nprint(1 + 1)\n```\n")
    assert run_block(code, tmp_path) == (0, "2\n")
