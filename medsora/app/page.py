"""The page itself: one tab that samples a grid of videos, one that plays two side by side."""

from __future__ import annotations

import base64
import html
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import gradio as gr

from medsora.app.form import condition_fields
from medsora.app.models import Models
from medsora.app.sampling import (
    MAX_STEPS,
    MAX_VIDEOS,
    SampleRequest,
    check_picture,
    pack,
    sample_files,
    without_paths,
)
from medsora.config.choices import SAMPLERS
from medsora.errors import BadInput, NonFiniteVideo
from medsora.saved.find import MEDSORA

TITLE = "MedSora"
SIDES = ("Left", "Right")
SAMPLER_TITLES = (
    *("DDIM (the paper's)", "DPM-Solver++ (needs 20 to 50 steps)", "UniPC (for 8 to 30 steps)"),
    "DDPM (learned variance)",
)
SAMPLER_CHOICES = list(zip(SAMPLER_TITLES, SAMPLERS, strict=True))
ONE_AT_A_TIME = {"concurrency_limit": 1, "concurrency_id": "sampling"}
THEME = gr.themes.Default(  # fonts of the reader's own system: nothing is fetched from elsewhere
    primary_hue="teal", neutral_hue="slate", font=["system-ui", "sans-serif"], font_mono=["monospace"]
)
HEADER = """<header class="medsora">
<h1>MedSora</h1>
<p>Synthetic endoscopy, generated from noise. For research, <b>not for diagnosis</b>.</p>
</header>"""
EMPTY = '<div class="clips empty">Videos appear here.</div>'
CSS = """
.gradio-container { width: 100% !important; max-width: 1180px !important; margin: 0 auto !important; }
.medsora h1 { font-size: 1.9rem; font-weight: 700; margin: .2rem 0 0; letter-spacing: -.02em; }
.medsora p { margin: .1rem 0 .6rem; opacity: .75; }
.clips { display: grid; grid-template-columns: repeat(auto-fit, minmax(180px, 1fr)); gap: 14px; }
.clips.pair { grid-template-columns: 1fr 1fr; max-width: 600px; margin: 0 auto; }
.clips.empty { display: flex; padding-top: 90px; justify-content: center; min-height: 340px; opacity: .5;
  border: 1px dashed currentColor; border-radius: 12px; }
.clip { margin: 0; max-width: 400px; border-radius: 12px; overflow: hidden;
  border: 1px solid var(--border-color-primary); background: var(--background-fill-secondary); }
.clip video { display: block; width: 100%; aspect-ratio: auto; background: #000; }
.clip figcaption { display: flex; flex-wrap: wrap; justify-content: space-between; align-items: baseline;
  gap: 8px; padding: 7px 11px; font-size: .85rem; }
.clip figcaption a { color: inherit; text-decoration: underline; text-underline-offset: 2px; }
.clip figcaption span { text-wrap: balance; overflow-wrap: anywhere; }
#model input, #left-model input, #right-model input { text-overflow: ellipsis;
  padding-right: 2rem !important; box-sizing: border-box; }
.summary { opacity: .75; font-size: .9rem; padding-left: 12px; }
#grid .wrap.center, #pair .wrap.center { inset: 0; }
#grid .progress-level-inner, #pair .progress-level-inner { font-family: inherit; font-size: .95rem; }
#grid .progress-bar-wrap, #pair .progress-bar-wrap { height: 8px; border-radius: 4px; overflow: hidden; }
#grid .meta-text-center, #pair .meta-text-center { inset: 8px 12px auto auto; transform: none;
  font-family: inherit; opacity: .6; }
#grid .error, #grid .clear-status, #pair .error, #pair .clear-status { display: none; }
"""


def build_page(models: Models) -> gr.Blocks:
    """Return the page; launch it with `THEME` and `CSS`."""
    with gr.Blocks(title=TITLE, analytics_enabled=False, delete_cache=(3600, 3600)) as page:
        gr.HTML(HEADER)
        with gr.Tab("Sample"):
            _sample_tab(models)
        with gr.Tab("Side by side"):
            _compare_tab(models)
    return page


def _sample_tab(models: Models) -> None:
    def sample(name: str, progress: gr.Progress = _PROGRESS, *fields: Any):
        with _errors_shown():
            request = _request(models, conditions[-1].GRADIO_CACHE, name, *fields)
            began = time.monotonic()
            progress(0, desc="loading the model")
            paths = sample_files(
                models.pipeline(name), name, request, lambda part, words: progress(part, desc=words)
            )
            archive = pack(paths, name, request)
        clips = [(path, f"seed {number}") for path, number in zip(paths, request.seeds, strict=True)]
        made = f"{len(paths)} video{'s' * (len(paths) != 1)}"
        summary = f"{made} in {time.monotonic() - began:.0f} s, {name}{request.condition_words}."
        return _grid(clips), summary, gr.DownloadButton(value=str(archive), interactive=True)

    with gr.Row():
        with gr.Column(scale=1, min_width=260):
            name = gr.Dropdown(models.names, value=models.names[0], label="Model", elem_id="model")
            conditions = condition_fields(models, name, "sample")
            sampler, steps = _sampler_fields(visible=models.kind(name.value) == MEDSORA)

            def follow(chosen: str) -> list[Any]:
                shown = models.kind(chosen) == MEDSORA
                return [gr.Dropdown(visible=shown), gr.Number(visible=shown)]

            name.change(follow, name, [sampler, steps], show_progress="hidden", queue=False)
            with gr.Row():
                seed = gr.Number(0, label="First seed", precision=0, elem_id="seed", min_width=100)
                videos = gr.Number(
                    4, label=f"Videos, max {MAX_VIDEOS}", precision=0, elem_id="videos", min_width=100
                )
        with gr.Column(scale=3):
            with gr.Row():  # here the buttons are in view at any height of the form
                button = gr.Button("Sample", variant="primary", elem_id="sample")
                download = gr.DownloadButton("Download all", interactive=False, elem_id="download")
            grid = gr.HTML(EMPTY, elem_id="grid")
            summary = gr.Markdown(elem_classes="summary", elem_id="summary")
    inputs = [name, sampler, steps, seed, videos, *conditions]
    button.click(sample, inputs, [grid, summary, download], show_progress_on=[grid], **ONE_AT_A_TIME)


def _compare_tab(models: Models) -> None:
    def compare(sampler: str, steps: Any, progress: gr.Progress = _PROGRESS, *fields: Any):
        clips = []
        with _errors_shown():
            requests, half = [], len(fields) // 2
            for name, seed, *conditions in (fields[:half], fields[half:]):
                uploads = sides[-1].GRADIO_CACHE
                requests.append((name, _request(models, uploads, name, sampler, steps, seed, 1, *conditions)))
            for side, (name, request) in enumerate(requests):

                def on_progress(part: float, words: str, side: int = side) -> None:
                    progress((side + part) / 2, desc=f"{SIDES[side].lower()}: {words}")

                on_progress(0, "loading the model")
                (path,) = sample_files(models.pipeline(name), name, request, on_progress)
                clips.append((path, f"{name}, seed {request.seeds[0]}{request.condition_words}"))
        return _grid(clips, pair=True)

    newest, oldest = models.names[0], models.names[-1]
    with gr.Row():
        sides = []
        for side, first, number in zip(SIDES, (newest, oldest), (0, int(newest == oldest)), strict=True):
            with gr.Column():
                name = gr.Dropdown(
                    models.names, value=first, label=f"{side} model", elem_id=f"{side.lower()}-model"
                )
                seed = gr.Number(number, label=f"{side} seed", precision=0, elem_id=f"{side.lower()}-seed")
                sides += [name, seed, *condition_fields(models, name, side.lower())]
    with gr.Row():
        sampler, steps = _sampler_fields()
    button = gr.Button("Compare", variant="primary", elem_id="compare")
    grid = gr.HTML(EMPTY, elem_id="pair")
    button.click(compare, [sampler, steps, *sides], grid, show_progress_on=[grid], **ONE_AT_A_TIME)


_PROGRESS = gr.Progress()


def _sampler_fields(visible: bool = True) -> tuple[gr.Dropdown, gr.Number]:
    return (
        gr.Dropdown(SAMPLER_CHOICES, value="ddim", label="Sampler", min_width=240, visible=visible),
        gr.Number(
            50, label=f"Steps, up to {MAX_STEPS:,}", precision=0, elem_classes="steps", visible=visible
        ),
    )


def _request(models: Models, uploads: str, name: str, *fields: Any) -> SampleRequest:
    """Return the request that the fields of a tab make of the model `name`."""
    *of_sampler, label, guidance, temperature, top_k, top_p, picture = fields
    draws = temperature, top_k, top_p
    request = SampleRequest(*of_sampler, label or None, guidance, picture, *draws, models.kind(name))
    if picture:
        check_picture(picture, uploads)
    return request


@contextmanager
def _errors_shown() -> Iterator[None]:
    """Show an error as one sentence on the page."""
    try:
        yield
    except (BadInput, NonFiniteVideo, ValueError, OSError) as error:
        raise gr.Error(
            without_paths(str(error)), title="That does not work", print_exception=False
        ) from error


def _grid(clips: list[tuple[Path, str]], *, pair: bool = False) -> str:
    """Return playing videos as HTML, embedded, each with its caption and a link that saves it."""
    figures = []
    for path, caption in clips:
        source = f"data:video/mp4;base64,{base64.b64encode(path.read_bytes()).decode('ascii')}"
        figures.append(
            f'<figure class="clip"><video src="{source}" autoplay loop muted playsinline></video>'
            f"<figcaption><span>{html.escape(caption)}</span>"
            f'<a href="{source}" download="{html.escape(path.name)}">save</a></figcaption></figure>'
        )
    return f'<div class="clips{" pair" if pair else ""}">{"".join(figures)}</div>'
