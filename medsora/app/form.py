"""The page's fields for a model's conditions: label, guidance, first frame, and how codes are drawn.

A model that was trained without them, or samples in another way, shows none of them.
"""

from __future__ import annotations

from typing import Any

import gradio as gr

from medsora.app.models import Models
from medsora.app.sampling import MAX_GUIDANCE, MAX_TOP_K, check_picture, without_paths
from medsora.errors import BadInput
from medsora.sampling.tokens import DEFAULT_TOP_K
from medsora.saved.find import ENDOGEN

ANY_LABEL = ("any", "")  # shown, sent
USUAL_GUIDANCE = 2


def condition_fields(models: Models, name: gr.Dropdown, place: str) -> list[gr.components.Component]:
    """Return fields for label, guidance, temperature, top-k, top-p and first frame, in this order.

    They follow the model chosen in `name`.
    `place` begins the fields' names on the page ("left" gives #left-label).
    """
    labels, takes_picture = models.conditions(name.value)
    label = gr.Dropdown(
        _choices(labels), value="", label="Label", visible=bool(labels), elem_id=f"{place}-label"
    )
    guidance = gr.Slider(
        1,
        MAX_GUIDANCE,
        USUAL_GUIDANCE,
        step=0.5,
        label="Guidance",
        visible=bool(labels),
        interactive=False,  # until there is a label to follow
        elem_id=f"{place}-guidance",
    )
    coded = models.kind(name.value) == ENDOGEN
    draws = [
        gr.Slider(0, 2, 1, step=0.05, label="Temperature", visible=coded, elem_id=f"{place}-temperature"),
        gr.Number(
            DEFAULT_TOP_K,
            precision=0,
            minimum=0,
            maximum=MAX_TOP_K,
            label="Codes to draw among (top-k), 0: all",
            visible=coded,
            elem_id=f"{place}-top-k",
        ),
        gr.Slider(
            0.05, 1, 1, step=0.05, label="Their probability (top-p)", visible=coded, elem_id=f"{place}-top-p"
        ),
    ]
    picture = gr.Image(
        type="filepath",
        image_mode=None,  # the uploaded file: any other mode is re-encoded, with losses
        sources=["upload"],
        label="First frame, if you like",
        visible=takes_picture,
        height=170,
        buttons=[],
        elem_id=f"{place}-first-frame",
    )

    def inspect(uploaded: dict[str, Any]) -> Any:
        try:
            check_picture(uploaded["path"], picture.GRADIO_CACHE)
        except BadInput as error:
            gr.Warning(without_paths(str(error)))
            return gr.Image(value=None)
        return gr.skip()

    def follow(name: str, chosen: str, uploaded: str | None) -> list[Any]:
        labels, takes_picture = models.conditions(name)
        kept = chosen if chosen in labels else ""
        coded = models.kind(name) == ENDOGEN
        return [
            gr.Dropdown(_choices(labels), value=kept, visible=bool(labels)),
            gr.Slider(visible=bool(labels), interactive=bool(kept)),
            gr.Slider(visible=coded),
            gr.Number(visible=coded),
            gr.Slider(visible=coded),
            gr.Image(value=uploaded if takes_picture else None, visible=takes_picture),
        ]

    quietly = {"show_progress": "hidden"}
    at_once = {**quietly, "queue": False}  # the queue is for samplings, and for what may end in a warning
    # Gradio's own check of a file that is no picture ends in an error without a reason.
    picture.upload(inspect, picture, picture, preprocess=False, **quietly)
    name.change(follow, [name, label, picture], [label, guidance, *draws, picture], **at_once)
    label.change(lambda chosen: gr.Slider(interactive=bool(chosen)), label, guidance, **at_once)
    return [label, guidance, *draws, picture]


def _choices(labels: list[str]) -> list[tuple[str, str]]:
    return [ANY_LABEL, *((label, label) for label in labels)]
