"""`medsora study equal-cost`: MedSora and Endora trained at equal minutes and at an equal number of steps.

Every system sees the same clips and cached latents. First each one's learning rate is chosen by the same
short trials, with a seed of their own. For equal minutes the systems take turns in segments, each measured
alone: only the time from a process's first step to its last counts, summed over all segments.
"""

from __future__ import annotations

import math
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from medsora.config.load import load_config
from medsora.config.presets import PRESETS
from medsora.config.schema import STAGE_2
from medsora.errors import BadInput
from medsora.runtime.files import make_folder, write_json, write_text
from medsora.studies import ablate
from medsora.studies.ablate import FAILED, FILL_CACHES, Study, keep_settings
from medsora.studies.report import Run
from medsora.studies.scores import Scoring, check_phantom
from medsora.studies.variants import Variant
from medsora.training.run.folder import hold_folder

BUDGETS = ("minutes", "steps")
SYSTEMS = {f"medsora-{preset}": preset for preset in PRESETS}  # other presets go by their own names
ASSUMED_STEP_S, ASSUMED_CLIP_S, ASSUMED_START_S = 0.6, 0.6, 20.0  # two cores, the phantom's tiny models
ENDING = 2  # processes to end a run of equal minutes: caches, evaluation
SCORING = 2  # processes to score a run: sampling, comparison


@dataclass(frozen=True)
class EqualCost:
    """The comparison: systems by name, learning rates to try, and both budgets."""

    config: str
    overrides: tuple[str, ...]
    systems: tuple[str, ...]
    rates: tuple[float, ...]
    trial_steps: int
    minutes: float
    segment: float
    steps: int
    seeds: tuple[int, ...]
    scoring: Scoring
    hours: float
    folder: Path

    def variant(self, system: str, rate: float) -> Variant:
        """Return what a system trains with, at a learning rate. Raises `BadInput` for a name it cannot be."""
        preset, _, changes = system.partition(":")
        words = [f"denoiser.preset={SYSTEMS.get(preset, preset)}", *filter(None, changes.split(","))]
        batch = load_config(self.config, list(self.overrides)).train_dit.phases[0].batch
        words.append(f"train_dit.phases=[{{lr: {rate:.6e}, batch: {batch}, until_epoch: null}}]")
        return Variant(tuple(words), load_config(self.config, [*self._overrides, *words]), system)

    @property
    def _overrides(self) -> tuple[str, ...]:
        return (*self.overrides, "train_dit.lr_decay=none", "train_dit.log_every=1")

    def _study(self, name: str, variants: Sequence[Variant], **budget: object) -> Study:
        values = {"steps": None, "minutes": None, "seeds": self.seeds, "scoring": self.scoring} | budget
        return Study(
            config=self.config,
            overrides=self._overrides,
            stage=STAGE_2,
            variants=tuple(variants),
            clips=16,
            folder=self.folder / name,
            **values,
        )

    def trials(self) -> Study:
        """Every system at every learning rate, with the seed after those that are compared."""
        variants = [
            self.variant(system, rate)._replace(name=f"{system} at {rate:g}")
            for system in self.systems
            for rate in self.rates
        ]
        return self._study(
            "trials", variants, steps=self.trial_steps, seeds=(self.seeds[-1] + 1,), scoring=None
        )

    def budgets(self, rates: dict[str, float]) -> dict[str, Study]:
        """The two comparisons, each system at its learning rate."""
        variants = [self.variant(system, rates[system]) for system in self.systems]
        return {
            "minutes": self._study("minutes", variants, minutes=self.minutes),
            "steps": self._study("steps", variants, steps=self.steps),
        }

    def chosen(self, trials: Study) -> dict[str, float]:
        """Return each system's learning rate of the least held-out error; the smaller one if two are equal.

        Raises `BadInput` for a system none of whose trials came to a finite error.
        """
        best_rates = {}
        for number, system in enumerate(self.systems):
            errors = {}
            for rate, run in zip(self.rates, self._trials_of(trials, number), strict=True):
                error = run.scores.get("held_out/clip_mse", math.nan)
                if math.isfinite(error):
                    errors[rate] = error
            if not errors:
                raise BadInput(f"no trial of {system} came to a finite error; give smaller --rates.")
            best_rates[system] = min(sorted(errors), key=errors.get)
        return best_rates

    def plan(self, step_s: dict[str, float] | None = None) -> tuple[list[str], float]:
        """Return the arithmetic of the whole study, a line for each part, and its sum in minutes.

        `step_s` are seconds of a step by system; without them `ASSUMED_STEP_S` is taken for each.
        """
        systems, seeds, rates = len(self.systems), len(self.seeds), len(self.rates)
        step_s = step_s or dict.fromkeys(self.systems, ASSUMED_STEP_S)
        step_min = sum(step_s.values()) / 60  # one step of every system
        runs, trials = systems * seeds, systems * rates
        segments = math.ceil(self.minutes / self.segment)
        starts = trials + runs * (segments + ENDING + 1 + SCORING * len(BUDGETS))
        clips = runs * len(BUDGETS) * self.scoring.clips
        each = ", ".join(f"{name} {seconds:.2f} s" for name, seconds in step_s.items())
        parts = {
            f"trials: {rates} rates x {self.trial_steps} steps ({each})": rates * self.trial_steps * step_min,
            f"equal minutes: {systems} systems x {seeds} seeds x {self.minutes:g} min": runs * self.minutes,
            f"equal steps: {seeds} seeds x {self.steps} steps of each system": seeds * self.steps * step_min,
            f"clips: {clips} sampled and scored ({ASSUMED_CLIP_S} s)": clips * ASSUMED_CLIP_S / 60,
            f"starts of {starts} processes ({ASSUMED_START_S:g} s)": starts * ASSUMED_START_S / 60,
        }
        total = sum(parts.values())
        lines = [f"{what} = {minutes:.1f} min" for what, minutes in parts.items()]
        lines.append(f"in all {total:.0f} min of {60 * self.hours:.0f} (--hours {self.hours:g})")
        return lines, total

    def check(self) -> dict[str, int]:
        """Return the trained parameters of every system. Raises `BadInput` for an invalid system."""
        config = load_config(self.config, list(self.overrides))
        check_phantom(config)
        if len(config.train_dit.phases) > 1:
            raise BadInput(
                f"train_dit.phases of {self.config} has {len(config.train_dit.phases)} phases, but one "
                "learning rate is chosen; give one phase."
            )
        self._require_time(None)
        budgets = self.budgets(dict.fromkeys(self.systems, self.rates[0]))
        return ablate.check(budgets["steps"])

    def _require_time(self, step_s: dict[str, float] | None) -> None:
        lines, total = self.plan(step_s)
        if total > 60 * self.hours:
            raise BadInput(
                f"the study takes {total:.0f} minutes, more than --hours {self.hours:g} "
                f"({'; '.join(lines[:-1])}); take fewer --steps, --minutes or --seeds, or more --hours."
            )

    def run(self, parameters: dict[str, int], command: str) -> str:
        """Run the unfinished parts and return the page.

        Raises `BadInput` if it would take more than `hours` by the speed of the trials, and as
        `ablate.run_all` does; leaves with status 1 if a run of a budget failed, after all others.
        """
        make_folder(self.folder)
        with hold_folder(self.folder, patience_s=0.0):
            trials = self.trials()
            by_title = {
                variant.title: parameters[variant.title.rpartition(" at ")[0]] for variant in trials.variants
            }
            keep_settings(trials.folder, trials.settings())
            if failed := ablate.run_all(trials, by_title, command):
                print(f"left out of the choice, they failed: {'; '.join(failed)}", file=sys.stderr)
            rates = self.chosen(trials)
            self._require_time(self._measured(trials))
            keep_settings(self.folder, {"rates": rates, "segment": self.segment})
            studies = self.budgets(rates)
            for study in studies.values():
                keep_settings(study.folder, study.settings())
            failed = []
            for seed in self.seeds:
                self._alternate(studies["minutes"], seed)
                for name, study in studies.items():
                    of_seed = ablate.run_all(replace(study, seeds=(seed,)), parameters, command)
                    failed += [f"{run} (equal {name})" for run in of_seed]
                    self._write(studies, rates, parameters, command)
            page = self._write(studies, rates, parameters, command)
            ablate.exit_if_failed(failed)
            return page

    def _write(
        self, studies: Mapping[str, Study], rates: dict[str, float], parameters: dict[str, int], command: str
    ) -> str:
        """Write results.md and results.json of both budgets; return the page."""
        page, values = [], {"rates": rates}
        for name, study in studies.items():
            titled = {"title": f"Equal {name}", "reference": self.systems[0]}
            report = study.report(parameters, command, **titled)
            report.write(study.folder)
            page.append(report.markdown())
            values[name] = report.values()
        chosen = ", ".join(f"{system} {rate:g}" for system, rate in rates.items())
        text = f"Learning rates, each the best of {len(self.rates)} trials: {chosen}.\n\n" + "\n".join(page)
        write_json(self.folder / "results.json", values)
        write_text(self.folder / "results.md", text)
        return text

    def _measured(self, trials: Study) -> dict[str, float]:
        """Seconds of a step by system, from its trials."""
        return {
            system: min(60 * run.minutes / run.steps for run in self._trials_of(trials, number) if run.steps)
            for number, system in enumerate(self.systems)
        }

    def _trials_of(self, trials: Study, number: int) -> list[Run]:
        """The trials of a system, one for each of `rates`."""
        of_system = trials.variants[number * len(self.rates) :][: len(self.rates)]
        return [trials.run(variant, trials.seeds[0]) for variant in of_system]

    def _alternate(self, study: Study, seed: int) -> None:
        """Train all systems of a seed in turns of a segment until each has had its minutes."""
        begun = [variant for variant in study.variants if study.run(variant, seed).steps is None]
        for variant in begun:
            ablate.launch(study.command(variant, seed)[1:], module=FILL_CACHES)
        failed = ablate.train_minutes(study, begun, seed, self.segment, ASSUMED_START_S / 60)
        if failed is not None:
            print(f"error: {failed.title}, seed {seed} failed (see above).", file=sys.stderr)
            sys.exit(FAILED)
        for variant in begun:
            ablate.end_run(study, variant, seed)
