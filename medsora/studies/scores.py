"""Scores of a finished run by clips: those that its denoiser samples, or that its VAE returns.

Every measurement is a command of its own, whose files lie in the run's folder; what is there is kept,
unless an earlier version's classifier wrote it.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from medsora.checkout import command_name
from medsora.config.schema import STAGE_1, Config
from medsora.data.phantom.corpus import FPS
from medsora.errors import BadInput
from medsora.evaluation.conditional.fresh_phantom import CLASSIFIER_RECIPE, HELD_OUT_SEED, phantom_folder
from medsora.saved.limits import read_json_object
from medsora.training.run.report import Metric

LABELS = "medsora.evaluation.conditional.labels"
VAE_AGREEMENT = "judge on the same, through the VAE"
REPORT = "results.json"


def _distance(of: str, kind: str) -> Metric:
    return Metric(f"{of}, distance from phantom (held out)", kind)


CLIP_METRICS = {
    "clips/flow_magnitude": Metric("mean flow, px/frame", "how much generated clips move", 0),
    "clips/mean_flow_error": Metric(
        "mean flow's distance from phantom (held out), px/frame", "of the sets' means"
    ),
    "clips/flow_magnitude_distance": _distance("flow magnitude", "Wasserstein-1, px/frame"),
    "clips/flow_direction_distance": _distance("flow direction", "degrees"),
    "clips/warping_error": Metric("flow error", "a frame against the next one along the flow, of 255", 0),
    "clips/warping_error_distance": _distance("flow error", "Wasserstein-1 over clips"),
    "clips/flicker_distance": _distance("flicker", "Wasserstein-1 over clips"),
    "clips/colour_distance": _distance("colours", "Wasserstein-1"),
    "clips/sharpness_distance": _distance("sharpness", "Wasserstein-1 over clips"),
    "clips/untrained_pyramid_distance": _distance("untrained 3-D pyramid", "Fréchet"),
    "clips/agreement": Metric("label agreement", "how often a classifier sees the requested label", 1),
    "vae/agreement": Metric("label agreement after the VAE", "a classifier on clips that it returns", 1),
    "vae/polyps_kept": Metric("polyps kept by the VAE", "how many of them the classifier still sees", 1),
}
Launch = Callable[..., int]


@dataclass(frozen=True)
class Scoring:
    """Sampling and classification of clips: `clips` per run; `classifier_clips` train the classifier."""

    clips: int
    sampler: str = "dpmpp"
    steps: int = 20
    classifier_clips: int = 900
    classifier_epochs: int = 24

    def score(self, folder: Path, config: Config, stage: str, launch: Launch) -> bool:
        """Compute the missing scores of the run of `stage` in `folder`.

        Returns False, without scores, if sampling failed: a part of the clips compares with no other run.
        Raises `BadInput` if a measurement leaves nothing.
        """
        of_run = folder.parent
        size = str(config.data.height_width[0])
        if stage == STAGE_1:
            self._classify(of_run / "labels", launch, "--vae", str(folder), "--size", size)
            return True
        videos, scores = of_run / "clips", of_run / "scores"
        sampling = ["--sampler", self.sampler, "--steps", str(self.steps)]
        if not (scores / REPORT).is_file():
            arguments = ["--num-videos", str(self.clips), "--out", str(videos), *sampling]
            if launch(["sample", "--model", str(folder), *arguments]):
                return False
            real = real_clips(config, self.clips)
            shape = ["--frames", str(config.data.frames), "--size", size]
            words = ["--real", str(real), "--fake", str(videos), *shape, "--out", str(scores)]
            launch(["evaluate", *words, "--clips", str(self.clips)])
            if not (scores / REPORT).is_file():
                raise _lost(scores / REPORT)
        if read_json_object(folder / "pipeline.json").get("labels"):
            self._classify(
                of_run / "labels", launch, "--model", str(folder), "--videos", str(self.clips), *sampling
            )
        return True

    def _classify(self, out: Path, launch: Launch, *words: str) -> None:
        """Run the classifier; its exit status 1, a criterion that is not met, is no failure here."""
        if _labels(out):
            return
        training = ["--training-clips", str(self.classifier_clips), "--epochs", str(self.classifier_epochs)]
        launch([*words, "--held-out-clips", str(self.clips), *training, "--out", str(out)], module=LABELS)
        if not _labels(out):
            raise _lost(out / REPORT)


def check_phantom(config: Config) -> None:
    """Raise `BadInput` unless the clips are the phantom's, of which fresh ones can be rendered."""
    if (config.data.interval or 1) > 1 or (config.data.rate or FPS) != FPS:
        raise BadInput(
            "clips are scored at the phantom's own rate: leave data.interval at 1 and data.rate out, or "
            "leave --score-clips out."
        )
    if config.data.root is not None:
        raise BadInput(
            "generated clips are scored against fresh phantom clips, but data.root names other videos; take "
            f"a config of the phantom, or compare folders by {command_name('evaluate')}."
        )


def real_clips(config: Config, count: int) -> Path:
    """Return a folder of as many phantom clips that no run has seen."""
    shape, phantom = (config.data.frames, config.data.height_width[0]), config.phantom
    kind = phantom.polyp_size, phantom.look
    return phantom_folder(Path(config.cache.dir), count, *shape, HELD_OUT_SEED, kind)


def read_scores(of_run: Path) -> dict[str, float]:
    """Return what `Scoring.score` left in a run's folder, by the names of `CLIP_METRICS`."""
    scores: dict[str, float | None] = {}
    if (of_run / "scores" / REPORT).is_file():
        results = read_json_object(of_run / "scores" / REPORT)
        scores |= {f"clips/{name}": distance["value"] for name, distance in results["distances"].items()}
        scores |= {f"clips/{name}": score["generated"] for name, score in results["scores"].items()}
        flow = results["scores"]["flow_magnitude"]
        scores["clips/mean_flow_error"] = abs(flow["generated"] - flow["real"])
    if labels := _labels(of_run / "labels"):
        scores["clips/agreement"] = labels.get("agreement")
        if scores["clips/agreement"] is None:
            scores["vae/agreement"] = labels.get(VAE_AGREEMENT)
            scores["vae/polyps_kept"] = labels.get(f"{VAE_AGREEMENT}, polyp")
    return {name: value for name, value in scores.items() if name in CLIP_METRICS and value is not None}


def _labels(folder: Path) -> dict[str, Any]:
    """What the classifier left; nothing if that was an earlier version's, which one table must not mix."""
    results = read_json_object(folder / REPORT) if (folder / REPORT).is_file() else {}
    return results if results.get("classifier_recipe") == CLASSIFIER_RECIPE else {}


def _lost(path: Path) -> BadInput:
    return BadInput(f"scoring left no {path} (see above); run the same command again.")
