"""A downstream study: the same task with and without unlabelled clips, over seeds; resumable; its report.

Every finished run is a JSON file, so a study that was stopped resumes with the next run.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from itertools import chain, product
from pathlib import Path
from typing import Any

import numpy as np

from medsora.downstream.clips import Samples
from medsora.errors import BadInput
from medsora.evaluation.bootstrap import replicate_weights
from medsora.runtime.digests import sealed, unsealed
from medsora.runtime.files import is_file, read_patiently, remove_leftovers, write_json, write_text
from medsora.runtime.markdown import EMPTY, NOT_RUN, markdown_table
from medsora.studies.paired import Difference, paired_difference

SUPERVISED = "supervised only"
REPLICATES = 500  # bootstrap draws of the test samples


@dataclass(frozen=True)
class Study:
    """The runs of a study; the variant `SUPERVISED` is what the others are compared with.

    `train(variant, seed)` returns what is kept of a run: `scores`, and `replicates`, the same over draws of
    the test samples.
    """

    title: str
    folder: Path
    seeds: range
    command: str
    labelled: Samples
    test: Samples
    unlabelled: Mapping[str, Samples]  # further variants: what each trains on, by its title
    scores: tuple[str, ...]  # names; parts of 1, higher is better
    trivial: Mapping[str, Mapping[str, float]]  # scores of answers that need no training, by title
    facts: dict[str, Any]  # what must be equal for runs to belong together, besides the pixels
    notes: tuple[str, ...]
    train: Callable[[str, int], dict[str, Any]]
    results: dict[tuple[str, int], dict[str, Any]] = field(default_factory=dict)

    def __post_init__(self) -> None:
        sides = {"labelled": self.labelled, "test": self.test, **self.unlabelled}
        self.facts["pixels"] = {title: side.digest() for title, side in sides.items()}

    @property
    def variants(self) -> dict[str, int]:
        """The number of unlabelled samples by title."""
        return {SUPERVISED: 0} | {title: len(samples) for title, samples in self.unlabelled.items()}

    @property
    def identity(self) -> str:
        """A digest of `facts`."""
        return hashlib.sha256(json.dumps(self.facts, sort_keys=True).encode()).hexdigest()

    def find_finished(self) -> None:
        """Load the finished runs of the folder; raises `BadInput` if they are those of another study."""
        for variant, seed in product(self.variants, self.seeds):
            path = self._file(variant, seed)
            if not is_file(path):
                continue
            text = read_patiently(Path.read_bytes, path)
            try:
                run = unsealed(json.loads(text))
                theirs = run["identity"]
            except (KeyError, TypeError, ValueError) as error:
                raise BadInput(f"{path} holds no run ({error}); delete it.") from error
            if theirs != self.identity:
                raise BadInput(f"{self.folder} holds runs of other data or options; take another --out.")
            self.results[variant, seed] = run

    def run(self) -> None:
        """Run the unfinished variants, all of a seed before the next; write the report after each."""
        remove_leftovers(self.folder)
        self.find_finished()
        for seed, variant in product(self.seeds, self.variants):
            if (variant, seed) in self.results:
                continue
            run = {"identity": self.identity, "variant": variant, "seed": seed} | self.train(variant, seed)
            write_json(self._file(variant, seed), sealed(run))
            scores = ", ".join(f"{score} {_percent(run['scores'][score])}" for score in self.scores)
            print(f"{variant}, seed {seed}: {scores}", flush=True)
            self.results[variant, seed] = run
            self.write()
        self.write()

    def write(self) -> None:
        """Write results.md and results.json."""
        fields = ("title", "variants", "scores", "trivial", "facts", "command", "notes")
        values = {name: getattr(self, name) for name in fields} | {"seeds": list(self.seeds)}
        runs = self.results.values()
        values["runs"] = [{k: v for k, v in run.items() if k != "replicates"} for run in runs]
        values["differences"] = {
            f"{variant}: {score}": difference._asdict()
            for variant, score in product(self.variants, self.scores)
            if (difference := self.difference(variant, score)) is not None
        }
        write_json(self.folder / "results.json", values)
        write_text(self.folder / "results.md", self.markdown())

    def difference(self, variant: str, score: str) -> Difference | None:
        """Return what the unlabelled samples of `variant` add to a score, paired by seed."""
        if variant == SUPERVISED:
            return None
        return paired_difference(self._values(variant, score), self._values(SUPERVISED, score))

    def markdown(self) -> str:
        """Return the page: a row for each variant and each trivial answer, scores in per cent."""
        header = ["", "unlabelled", "runs"]
        for score in self.scores:
            header += [score, "over seeds", "over test samples", f"against {SUPERVISED}"]
        rows = [self._variant_row(variant) for variant in self.variants]
        for title, scores in self.trivial.items():
            cells = ([_percent(scores[score]), EMPTY, EMPTY, EMPTY] for score in self.scores)
            rows.append([title, EMPTY, EMPTY, *chain.from_iterable(cells)])
        lines = [
            f"# {self.title}",
            "",
            *self.notes,
            "",
            f"Scores are per cent, means over the seeds {', '.join(map(str, self.seeds))}, with two 95 % "
            "intervals: over seeds (Student's t), which holds for these test samples, and over draws of the "
            "test samples with replacement, which holds for these trained models. Differences are paired by "
            "seed.",
            "",
            *markdown_table(header, rows),
        ]
        return "\n".join([*lines, "", "```sh", self.command, "```", ""])

    def _variant_row(self, variant: str) -> list[str]:
        finished = [run for (title, _), run in self.results.items() if title == variant]
        cells = [variant, str(self.variants[variant]), f"{len(finished)} of {len(self.seeds)}"]
        for score in self.scores:
            if not finished:
                cells += [NOT_RUN, EMPTY, EMPTY, EMPTY]
                continue
            values = self._values(variant, score)
            over_seeds = paired_difference(values, dict.fromkeys(values, 0.0))
            draws = np.mean([run["replicates"][score] for run in finished], axis=0)
            low, high = np.percentile(draws, (2.5, 97.5))
            cells += [_percent(over_seeds.mean), _interval(over_seeds), f"{100 * low:.1f} … {100 * high:.1f}"]
            added = self.difference(variant, score)
            text = added and f"{100 * added.mean:+.1f} ({_interval(added)}), {added.reading(1)}"
            cells.append(text or EMPTY)
        return cells

    def _values(self, variant: str, score: str) -> dict[int, float]:
        return {seed: run["scores"][score] for (title, seed), run in self.results.items() if title == variant}

    def _file(self, variant: str, seed: int) -> Path:
        number = list(self.variants).index(variant)
        name = re.sub(r"[^\w.-]", "-", variant)
        return self.folder / "runs" / f"{number}-{name}-seed-{seed}.json"


def draws_of_test(samples: int) -> np.ndarray:
    """Return how often each test sample counts in each draw, the same in all runs: (draws, samples)."""
    return np.stack(list(replicate_weights(samples, REPLICATES, seed=0, side=0)))


def _percent(value: float) -> str:
    return f"{100 * value:.1f}"


def _interval(difference: Difference) -> str:
    return EMPTY if difference.low is None else f"{100 * difference.low:.1f} … {100 * difference.high:.1f}"
