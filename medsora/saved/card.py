"""The README.md of a model folder: what the model is, what it was trained on, its metrics, limits and use."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

CARD_NAME = "README.md"  # file that the hub displays
NOT_DESCRIBED = "The person who exported this model gave no description. Ask them before you use it."
LIMITS = [
    "It invents. Anatomy, lesions, instruments and their motion are plausible at best; nothing that it shows "
    "was ever in a patient, and nothing follows from it about any patient.",
    "It reproduces its training distribution: rare findings are rarer still in generated videos, and what no "
    "training video shows cannot appear.",
    "It may repeat training videos. Compare its output with them before you publish it if they are private.",
    "Metrics such as FVD compare distributions of features. They do not measure medical correctness.",
]
INTENDED_USE = (
    "Research: on generative models, on augmentation, on teaching material that is labelled as synthetic. "
    "**Not for diagnosis**, treatment, triage or any decision about a person, and no evidence of anything."
)
MARKING = (
    "Every video that MedSora's own commands write carries metadata that marks it as synthetic, and so does "
    "the manifest beside it. Keep both when you pass videos on."
)


@dataclass(frozen=True)
class ModelCard:
    """The contents of the card; tables are lists of (name, value).

    `evaluation` holds lines of Markdown; `weights` is which set is here: "ema", "raw" or "saved"; `summary`
    describes the model, if it is no denoiser and VAE; `pipeline` imports what loads it; `method` is a tag.
    """

    name: str
    preset: str
    parameters: int
    vae_parameters: int
    geometry: dict[str, Any]
    model: str = "MedSora"
    summary: str | None = None
    pipeline: str = "from medsora import MedSoraPipeline"
    method: str = "diffusion"
    repo: str | None = None
    step: int | None = None
    weights: str = "saved"
    data: str | None = None
    licence: str | None = None
    training: Sequence[tuple[str, str]] = ()
    evaluation: Sequence[str] = ()
    sheet: str | None = None

    def markdown(self) -> str:
        """Return the page, with the front matter that the hub reads."""
        height, width = self.geometry["size"]
        frames, fps = self.geometry["frames"], self.geometry["fps"]
        where = self.repo or "PATH_OR_OWNER/NAME"
        average = {"ema": "moving average (EMA) of the", "raw": "raw"}.get(self.weights, "")
        at = f" after {self.step:,} optimiser steps" if self.step is not None else ""
        lines = [
            "---",
            "library_name: medsora",
            *([f"license: {self.licence}"] if self.licence else []),
            f"tags: [medsora, video-generation, {self.method}, medical, endoscopy, synthetic]",
            "---",
            "",
            f"# {_plain(self.name)}",
            "",
            f"{self.summary or self._usual_summary} clips of {frames} frames of {height}x{width} pixels, "
            f"shown at {fps:g} per second.",
            "",
            f"> {INTENDED_USE}",
            "",
            *([f"![Generated clips]({self.sheet})", "", "*Synthetic.*", ""] if self.sheet else []),
            "## Use",
            "",
            "```python",
            self.pipeline,
            "",
            f'pipe = {self.pipeline.split()[-1]}.from_pretrained("{where}").to("cuda")  # or stay on the CPU',
            "frames = pipe(num_videos=4).frames  # float32 (4, F, H, W, 3) in [0, 1]",
            "```",
            "",
            f"or `python -m medsora sample --model {where} --num-videos 4 --out videos`. {MARKING}",
            "",
            *_label_lines(self.geometry.get("labels", ())),
            "## Training data",
            "",
            self.data or NOT_DESCRIBED,
            "",
            "## Training",
            "",
            f"The weights here are the {average} weights{at}.".replace("the  weights", "the weights"),
            *_table("metric", "value", self.training),
            "",
            "## Evaluation",
            "",
            *(self.evaluation or ["None was given when this folder was made."]),
            "",
            "## Limits",
            "",
            *[f"- {limit}" for limit in LIMITS],
            "",
            "## Intended use",
            "",
            INTENDED_USE,
        ]
        return "\n".join(lines) + "\n"

    @property
    def _usual_summary(self) -> str:
        return (
            f"A video diffusion model ({self.model}, preset {self.preset}) with {self.parameters:,} "
            f"parameters in the denoiser and {self.vae_parameters:,} in the VAE. From noise it makes"
        )


def _label_lines(labels: Sequence[str]) -> list[str]:
    if not labels:
        return []
    return [
        f"Labels, for `pipe(label=..., guidance=2.0)` or `--label ... --guidance 2`: "
        f"{', '.join(_plain(label) for label in labels)}.",
        "",
    ]


def evaluation_lines(results: dict[str, Any]) -> list[str]:
    """Return the table of an evaluation, from what `evaluate.py` left in `results.json`.

    Raises `KeyError` or `TypeError` if it is something else.
    """
    sets, protocol = results["sets"], results["protocol"]
    named = f" (protocol {protocol['name']})" if "name" in protocol else ""  # older results have none
    height, width = protocol["size"]
    reference = _plain(sets["real"].get("called", "real"))
    rows = [
        (distance["title"], f"{_number(distance['value'])} {distance['unit']}".rstrip())
        for distance in results["distances"].values()
    ]
    for score in results["scores"].values():
        title = f"{score['title']} ({reference} clips: {_number(score['real'])})"
        rows.append((title, f"{_number(score['generated'])} {score['unit']}"))
    return [
        f"{sets['generated']['clips_used']} generated clips against {sets['real']['clips_used']} {reference} "
        f"clips, each of {protocol['frames']} frames of {height}x{width} pixels{named}.",
        *_table("metric", "value", rows),
        *[f"\n**Note:** {_plain(warning)}" for warning in results.get("warnings", [])],
    ]


def _table(left: str, right: str, rows: Sequence[tuple[str, str]]) -> list[str]:
    if not rows:
        return []
    return ["", f"| {left} | {right} |", "|---|---|", *(f"| {_cell(a)} | {_cell(b)} |" for a, b in rows)]


def _cell(text: str) -> str:
    return _plain(text).replace("|", "\\|")


def _plain(text: str) -> str:
    return " ".join(str(text).split())


def _number(value: float | None) -> str:
    return "undefined" if value is None else f"{value:.4g}"
