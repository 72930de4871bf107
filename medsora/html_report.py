"""`report.html`: one self-contained page of metrics, sheets and playing videos that needs no network."""

from __future__ import annotations

import base64
import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

import jinja2
import numpy as np
from matplotlib import colormaps
from matplotlib.figure import Figure

from medsora.runtime.files import write_text, written_beside

MAX_POINTS = 2000  # per curve; more cannot be seen
MEDIA_TYPES = {".png": "image/png", ".jpg": "image/jpeg", ".svg": "image/svg+xml", ".mp4": "video/mp4"}


@dataclass
class Section:
    """One part of the page: heading, sentences, a table, code as it is, captioned pictures and videos.

    `table` holds rows of equal length, under the words of `header` if there are any; pictures and videos are
    (path, caption).
    """

    title: str
    text: list[str] = field(default_factory=list)
    table: list[tuple[str, ...]] = field(default_factory=list)
    header: tuple[str, ...] = ()
    code: str = ""
    images: list[tuple[Path, str]] = field(default_factory=list)
    videos: list[tuple[Path, str]] = field(default_factory=list)
    legible: bool = False  # wide pictures are scrolled on a small screen instead of shrunk


def write_report(path: Path, title: str, subtitle: str, sections: Sequence[Section]) -> None:
    """Write the page atomically; every string is escaped, every picture and video is embedded."""
    environment = jinja2.Environment(autoescape=True, trim_blocks=True, lstrip_blocks=True)
    template = environment.from_string(_PAGE)
    page = template.render(title=title, subtitle=subtitle, sections=sections, embed=_embed)
    write_text(path, page)


def draw_curves(path: Path, log: list[dict[str, float]], prefix: str, title: str) -> None:
    """Draw the metrics of a run's `log` (of `read_log`) whose names start with `prefix` over the steps.

    What is always zero, such as a loss that is left out, is left out.
    """
    names = sorted({name for line in log for name in line if name.startswith(prefix) and line[name]})
    figure = Figure(figsize=(7, 3.2), layout="constrained")
    axes = figure.subplots()
    for number, name in enumerate(names):
        points = [(line["step"], line[name]) for line in log if name in line]
        steps, values = map(np.array, zip(*points, strict=True))
        label = name.removeprefix(prefix) or name
        colour = colormaps["turbo"](0.1 + 0.8 * number / len(names)) if len(names) > 10 else f"C{number}"
        window = max(len(values) // 40, 1)
        thin = slice(None, None, math.ceil(len(values) / MAX_POINTS))
        if window > 1:
            axes.plot(steps[thin], values[thin], alpha=0.2, color=colour)
        style = {"marker": "o"} if len(values) == 1 else {}
        axes.plot(steps[thin], _running_mean(values, window)[thin], label=label, color=colour, **style)
    values = [line[name] for line in log for name in names if name in line]
    positive = [value for value in values if value > 0]
    if positive and min(values) >= 0 and max(positive) > 5 * min(positive):
        axes.set_yscale("log", nonpositive="mask")
    axes.set(title=title, xlabel="optimiser step")
    axes.grid(alpha=0.3)
    if len(names) > 1:
        axes.legend(ncols=1 + len(names) // 13, fontsize="small")
    save_figure(path, figure)


def save_figure(path: Path, figure: Figure) -> None:
    """Write a figure in the format of its path's suffix; SVGs without a date, to be reproducible."""
    with written_beside(path) as beside:
        figure.savefig(beside, dpi=110, metadata={"Date": None} if path.suffix == ".svg" else None)


def _running_mean(values: np.ndarray, window: int) -> np.ndarray:
    """Mean of each value and those before it, `window` in all or as many as there are."""
    sums = np.cumsum(np.concatenate([[0.0], values]))
    last = np.arange(1, len(values) + 1)
    first = np.maximum(last - window, 0)
    return (sums[last] - sums[first]) / (last - first)


def _embed(path: Path) -> str:
    data = base64.b64encode(Path(path).read_bytes()).decode("ascii")
    return f"data:{MEDIA_TYPES[Path(path).suffix]};base64,{data}"


_PAGE = """<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>{{ title }}</title>
<style>
  :root { color-scheme: light dark; --line: #8883; --soft: #777; }
  @media (prefers-color-scheme: dark) { :root { --soft: #aaa; } }
  body { font: 16px/1.5 system-ui, sans-serif; max-width: 64rem; margin: 2rem auto; padding: 0 1rem; }
  h1 { margin-bottom: 0; } header p { color: var(--soft); margin-top: .2rem; }
  h2 { margin-top: 2.5rem; border-bottom: 1px solid var(--line); padding-bottom: .2rem; }
  .videos { display: grid; grid-template-columns: repeat(auto-fill, minmax(min(47%, 240px), 1fr));
    gap: .6rem; }
  .videos + .images { margin-top: .8rem; }
  figure { margin: 0; } figcaption { font-size: .85rem; color: var(--soft); }
  video { width: 100%; border-radius: 6px; image-rendering: auto; background: #000; }
  img { max-width: 100%; border-radius: 6px; }
  .images { display: grid; grid-template-columns: repeat(auto-fit, minmax(min(100%, 28rem), 1fr));
    gap: 1rem; }
  .legible figure { overflow-x: auto; min-width: 0; } .legible img { min-width: 44rem; }
  pre { background: #8881; border-radius: 6px; padding: .8rem; overflow-x: auto; font-size: .85rem; }
  .wide { overflow-x: auto; }
  table { border-collapse: collapse; }
  td, th { padding: .15rem 1.2rem .15rem 0; border-bottom: 1px solid var(--line); text-align: left;
    vertical-align: top; font-variant-numeric: tabular-nums; }
  td + td:not(:last-child) { white-space: nowrap; }
  @media (max-width: 40rem) { td, th { font-size: .8rem; padding-right: .6rem; } }
</style>
</head>
<body>
<header><h1>{{ title }}</h1><p>{{ subtitle }}</p></header>
{% for section in sections %}
<section>
<h2>{{ section.title }}</h2>
{% for sentence in section.text %}<p>{{ sentence }}</p>
{% endfor %}
{% if section.table %}<div class="wide"><table>
{% if section.header %}<tr>{% for word in section.header %}<th>{{ word }}</th>{% endfor %}</tr>{% endif %}

{% for row in section.table %}<tr>{% for cell in row %}<td>{{ cell }}</td>{% endfor %}</tr>
{% endfor %}</table></div>{% endif %}
{% if section.code %}<pre>{{ section.code }}</pre>
{% endif %}
{% if section.videos %}<div class="videos">
{% for path, caption in section.videos %}<figure>
<video src="{{ embed(path) }}" autoplay loop muted playsinline controls></video>
<figcaption>{{ caption }}</figcaption></figure>
{% endfor %}</div>{% endif %}
{% if section.images %}<div class="images{% if section.legible %} legible{% endif %}">
{% for path, caption in section.images %}<figure>
<img src="{{ embed(path) }}" alt="{{ caption }}"><figcaption>{{ caption }}</figcaption></figure>
{% endfor %}</div>{% endif %}
</section>
{% endfor %}
</body>
</html>
"""
