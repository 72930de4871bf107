"""Early stopping on the held-out loss (§4.1), off by default.

Its state is the run's log, whose lines a resumed run cuts back to its checkpoint: nothing else is saved.
"""

from __future__ import annotations

import math
from typing import NamedTuple

from medsora.config.schema import TrainingConfig
from medsora.training.run.folder import RunFolder, read_log


class EarlyStop(NamedTuple):
    """Ends training after `patience` evaluations of `metric` that improved its best value too little.

    `gain` is the smallest decrease that counts, as a part of the best value so far.
    """

    run: RunFolder
    metric: str
    patience: int
    gain: float
    every: int

    @classmethod
    def of(cls, run: RunFolder, settings: TrainingConfig, metric: str) -> EarlyStop | None:
        """Return the early stopping on a logged `metric` by a stage's settings; None where it is off."""
        if settings.early_stop is None:
            return None
        return cls(run, metric, settings.early_stop, settings.early_stop_gain, settings.eval_every)

    def best(self) -> tuple[int, float, int] | None:
        """Return the step and value of the best evaluation, and how many followed; None before the first.

        That of the untrained model does not count: it has no checkpoint.
        """
        best = None
        for line in read_log(self.run.path):
            if line["step"] > 0 and (value := line.get(self.metric)) is not None:
                first = best is None or (math.isnan(best[1]) and not math.isnan(value))
                if first or value < best[1] * (1 - self.gain):
                    best = line["step"], value, 0
                else:
                    best = *best[:2], best[2] + 1
        return best

    def why(self) -> str | None:
        """Return the sentence to end training with; None while it continues."""
        best = self.best()
        if best is None or best[2] < self.patience:
            return None
        step, value, since = best
        kept = (self.run.checkpoints / f"step-{step:07d}").is_dir()  # unless it was off at that step
        return (
            f"early stopping: {self.metric.replace('/', ' ')} has not improved in {since} evaluations on "
            f"{value:.4g} at step {step}{', whose checkpoint is kept' if kept else ''}; a larger "
            f"{self.run.stage}.early_stop, or null, continues training."
        )
