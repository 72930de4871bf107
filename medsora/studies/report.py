"""The tables of a study: scores by variant, paired differences over seeds, and the commands of every run."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from statistics import fmean
from typing import Any, NamedTuple

from medsora.config.schema import STAGE_1, STAGE_2
from medsora.runtime.files import write_json, write_text
from medsora.runtime.markdown import EMPTY, NOT_RUN, markdown_table
from medsora.studies.paired import Difference, paired_difference
from medsora.studies.scores import CLIP_METRICS
from medsora.studies.variants import REFERENCE
from medsora.training.run.report import Metric, metric_of

SCORES = {
    STAGE_1: ("held_out/psnr", "held_out/ssim", "held_out/flicker", "held_out/spectrum_error"),
    STAGE_2: ("held_out/clip_mse",),
}
# Clip scores that a page shows beside these.
PAGE_SCORES = ("clips/flow_magnitude_distance", "clips/warping_error_distance")
PAGE_SCORES += ("clips/untrained_pyramid_distance", "clips/agreement", "vae/polyps_kept")
SWITCHED_OFF = "the same runs, compensation switched off"


class Run(NamedTuple):
    """One variant with one seed; `steps` is None until it is trained and evaluated to its end.

    `evaluations` hold the held-out metrics by step.
    """

    title: str
    seed: int
    steps: int | None = None
    evaluations: dict[int, dict[str, float]] = {}  # noqa: RUF012 (never written to)
    minutes: float = 0.0
    of_clips: dict[str, float] = {}  # noqa: RUF012 (never written to)

    @property
    def scores(self) -> dict[str, float]:
        """The metrics after the last step; empty for a run that is not finished."""
        return self.evaluations[self.steps] | self.of_clips if self.steps else {}


class StudyReport(NamedTuple):
    """A study's runs and what a reader needs to assess and repeat them.

    Differences are taken to the variant `reference`.
    """

    stage: str
    budget: str
    seeds: Sequence[int]
    clips: int
    parameters: Mapping[str, int]
    runs: Sequence[Run]
    commands: Mapping[str, str]  # by variant, with the first seed
    command: str
    title: str = "Ablation"
    reference: str = REFERENCE
    against_steps: bool = True  # runs of so many minutes each end at a step of their own

    def write(self, folder: Path) -> None:
        """Write results.md and results.json. Raises `OSError` if the folder cannot be written."""
        write_json(folder / "results.json", self.values())
        write_text(folder / "results.md", self.markdown())

    def values(self) -> dict[str, Any]:
        """Return what results.json holds: every run, and the differences."""
        runs = [run._asdict() for run in self.runs]
        return self._asdict() | {"runs": runs, "differences": self._json_differences()}

    def markdown(self) -> str:
        """Return the page."""
        done = sum(run.steps is not None for run in self.runs)
        lines = [
            f"# {self.title}",
            "",
            f"{done} of {len(self.runs)} runs are finished: {self.budget} each, seeds "
            f"{', '.join(map(str, self.seeds))}, scored on at most {self.clips} held-out clips. Runs of one "
            "seed share clips, noise and timesteps; a difference is the mean over seeds of the variant minus "
            f"`{self.reference}`, with its 95 % interval (Student's t). Where the interval holds 0, the two "
            "are not distinguishable. One comparison in twenty leaves 0 out by chance.",
            "",
            *self._table(SCORES[self.stage]),
        ]
        if self.stage == STAGE_2 and (by_timestep := self._timesteps()):
            lines += ["", "## By timestep", "", *self._table(by_timestep)]
        if of_clips := self._of_clips():
            lines += ["", "## Clips", "", *self._table(of_clips)]
        if curve := self._curve():
            lines += ["", "## Against steps", "", *curve]
        lines += ["", "## Commands", "", "```sh", self.command, "```", "", "Each run by itself:", "", "```sh"]
        return "\n".join([*lines, *self.commands.values(), "```", ""])

    def page(self) -> list[str]:
        """Return the lines for a page of documentation: the main scores, one column each, and the command."""
        shown = [*SCORES[self.stage], *(name for name in PAGE_SCORES if name in self._of_clips())]
        rows = []
        for title in self._titles:
            count = f"{self.parameters[title]:,}" if title in self.parameters else EMPTY
            rows.append([f"`{title}`", count, *(self._cell(title, score) for score in shown)])
        done = sum(run.steps is not None for run in self.runs)
        seeds = f"{len(self.seeds)} seed{'s' * (len(self.seeds) != 1)}"
        return [
            f"{self.budget} each, {seeds} ({done} of {len(self.runs)} runs finished), "
            f"{self.clips} held-out clips; in brackets differences from `{self.reference}` with 95 % "
            "intervals.",
            "",
            *markdown_table(["variant", "parameters", *(_metric(name).label for name in shown)], rows),
            "",
            *((*curve, "") if (curve := self._curve()) else ()),
            '```{.sh data-skip="trains for hours; tests run small ones"}',
            self.command,
            "```",
        ]

    def _cell(self, title: str, score: str) -> str:
        """The mean over seeds and, in brackets, what differs from the reference."""
        values = self._values(title, score)
        if not values:
            return NOT_RUN
        mean = f"{fmean(values.values()):.4g}"
        return mean if title == self.reference else f"{mean} [{self._difference_text(title, score)}]"

    def difference(self, title: str, score: str) -> Difference | None:
        """Return what a variant does to a score."""
        return paired_difference(self._values(title, score), self._values(self.reference, score))

    @property
    def _titles(self) -> list[str]:
        off = any(_off("held_out/psnr") in run.scores for run in self.runs)
        return [*self.parameters, *([SWITCHED_OFF] if off else [])]

    def _values(self, title: str, score: str) -> dict[int, float]:
        if title == SWITCHED_OFF:  # nothing but the held-out scores is also computed without it
            if not score.startswith("held_out/"):
                return {}
            title, score = self.reference, _off(score)
        return {
            run.seed: run.scores[score] for run in self.runs if run.title == title and score in run.scores
        }

    def _table(self, scores: Sequence[str]) -> list[str]:
        header = ["variant", "parameters", "runs", "minutes"]
        for score in scores:
            header += [_metric(score).label, "difference (95 % interval)"]
        rows = []
        for title in self._titles:
            runs = [run for run in self.runs if run.title == title and run.steps]
            count = f"{self.parameters[title]:,}" if title in self.parameters else EMPTY
            minutes = f"{fmean(run.minutes for run in runs):.1f}" if runs else EMPTY
            cells = [title, count, f"{len(runs)} of {len(self.seeds)}", minutes]
            if title == SWITCHED_OFF:
                cells[2] = EMPTY
            for score in scores:
                values = self._values(title, score)
                cells.append(f"{fmean(values.values()):.4g}" if values else NOT_RUN)
                cells.append(EMPTY if title == self.reference else self._difference_text(title, score))
            rows.append(cells)
        return markdown_table(header, rows)

    def _difference_text(self, title: str, score: str) -> str:
        difference = self.difference(title, score)
        if difference is None:
            return EMPTY
        interval = "" if difference.low is None else f" ({difference.low:+.2g} … {difference.high:+.2g})"
        return f"{difference.mean:+.2g}{interval}, {difference.reading(_metric(score).sign)}"

    def _timesteps(self) -> list[str]:
        prefix = "held_out/clip_mse_t"
        names = {name for run in self.runs for name in run.scores if name.startswith(prefix)}
        return sorted(names, key=lambda name: int(name.removeprefix(prefix)))

    def _of_clips(self) -> list[str]:
        return [name for name in CLIP_METRICS if any(name in run.scores for run in self.runs)]

    def _curve(self) -> list[str]:
        """The first score at every step that some run was evaluated at, means over seeds.

        Nothing unless the budget is a number of steps.
        """
        score = SCORES[self.stage][0]
        steps = sorted({step for run in self.runs for step in run.evaluations if step})
        if not self.against_steps or len(steps) < 2:
            return []
        rows = []
        for title in self.parameters:
            cells = [title]
            for step in steps:
                values = [
                    run.evaluations[step][score]
                    for run in self.runs
                    if run.title == title and score in run.evaluations.get(step, {})
                ]
                cells.append(f"{fmean(values):.4g}" if values else EMPTY)
            rows.append(cells)
        return markdown_table([f"{_metric(score).label} after", *(f"{step} steps" for step in steps)], rows)

    def _json_differences(self) -> dict[str, Any]:
        return {
            title: {
                score: difference._asdict()
                for score in (*SCORES[self.stage], *self._timesteps(), *self._of_clips())
                if (difference := self.difference(title, score)) is not None
            }
            for title in self._titles
            if title != self.reference
        }


def _off(score: str) -> str:
    """The name of a VAE's score with its compensation switched off."""
    return score.replace("held_out/", "held_out/base_")


def _metric(score: str) -> Metric:
    return CLIP_METRICS.get(score) or metric_of(score)
