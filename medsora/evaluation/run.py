"""One evaluation from two folders to figures: what `evaluate.py` calls, and Python may."""

from __future__ import annotations

import shutil
import sys
from collections.abc import Mapping
from importlib import metadata
from itertools import chain
from pathlib import Path
from typing import Any

from accelerate import PartialState

from medsora.config.crop import crop_in_words, crop_of_generated
from medsora.errors import building
from medsora.evaluation import stylegan_v
from medsora.evaluation.bootstrap import between_halves, bootstrap, spread
from medsora.evaluation.features.clip_set import RESIZE, ClipSet
from medsora.evaluation.features.extraction import extract
from medsora.evaluation.features.feature_store import Features
from medsora.evaluation.memorisation import audit
from medsora.evaluation.metrics.measure import Measure
from medsora.evaluation.metrics.pixel import PixelExtractor
from medsora.evaluation.metrics.pyramid import PyramidExtractor
from medsora.evaluation.metrics.registry import build_measures
from medsora.evaluation.report.degenerate import degenerate
from medsora.evaluation.report.plots import draw_distances, draw_motion, write_sheet
from medsora.evaluation.report.results import Distance, Results, Score
from medsora.evaluation.report.warnings import caveats, require_enough
from medsora.evaluation.settings import STYLEGAN_V, EvaluationSettings
from medsora.evaluation.training_clips import fit_to_training, unlike_rates
from medsora.runtime.processes import check_same_places, on_main, working_together
from medsora.runtime.versions import library_versions

CHOICE = "clips without overlap from every usable video, then a seeded permutation's first clips"
BY_FRAME = ("inception",)  # extractors that see single frames
LIBRARIES = (
    "numpy",
    "scipy",
    "opencv-python-headless",
    "av",
    "pillow",
    "torchvision",
    "transformers",
    "torch-fidelity",
)


def evaluate(real: str | Path, fake: str | Path, **options: Any) -> Results | None:
    """Compare the generated clips below `fake` with the real ones below `real`; write and return the results.

    `options` are the fields of `EvaluationSettings`. In several processes the main one returns the results,
    the others None. Raises `BadInput`, in one sentence, for anything that cannot be used.
    """
    return run_evaluation(EvaluationSettings(real, fake, **options))


def run_evaluation(settings: EvaluationSettings) -> Results | None:
    """Do what `settings` say; see `evaluate`."""
    with working_together() as state:
        return _run(settings, state)


def _run(settings: EvaluationSettings, state: PartialState) -> Results | None:
    check_same_places(output=settings.out, cache=settings.cache)
    measures = _build(settings, state)  # weights that are missing are reported before anything is decoded
    settings, trained_on, warnings = on_main(state, lambda: fit_to_training(settings))
    sides = on_main(state, lambda: _choose_sides(settings))
    real, fake = sides["clips"]
    # by the extractors' names: FID and IS share one
    extractors = {measure.extractor.identity["name"]: measure.extractor for measure in measures.values()}
    extractors.setdefault("pixel", PixelExtractor())  # finds black clips and copies
    scratch = settings.out / ".features"
    real_features: dict[str, Features] = {}
    fake_features: dict[str, Features] = {}
    for kind, (of_real, of_fake) in sides.items():
        mine = {name: e for name, e in extractors.items() if (name in BY_FRAME) == (kind == "frames")}
        if len(sides) == 1:
            mine = extractors
        share = {"state": state, "batch_size": settings.batch_size * settings.frames // of_real.frames}
        real_features |= extract(of_real, mine, settings.cache, label="real", **share)
        fake_features |= extract(of_fake, mine, scratch, label="generated", **share)
    audited = None
    if settings.memorised is not None:
        # the features of the audit: I3D's where it was asked for, else the pyramid's
        of_audit = measures["fvd"].extractor if "fvd" in measures else PyramidExtractor(state.device)
        audited = audit(settings, fake, real, of_audit, state, scratch)
    if not state.is_main_process:
        return None
    results = _compute(settings, measures, real_features, fake_features, sides)
    results.memorisation = audited
    results.protocol["trained_on"] = trained_on
    with building():
        warnings += degenerate(real, fake, real_features["pixel"], fake_features["pixel"])
    if settings.protocol != STYLEGAN_V:  # whose interval is 1, whatever the rates
        warnings += unlike_rates(trained_on, real, fake)
    results.warnings = list(dict.fromkeys([*warnings, *caveats(settings, real, fake, results)]))
    for warning in results.warnings:
        print(f"warning: {warning}", file=sys.stderr)
    with building():
        results.write(settings.out)
        write_sheet(settings.out / "contact-sheet.png", real, fake)
        if results.distances:  # the Inception Score and Frame Consistency have none
            draw_distances(settings.out / "distances.png", results.distances)
        if "motion" in measures:
            draw_motion(settings.out / "motion.png", real_features["motion"], fake_features["motion"])
    shutil.rmtree(scratch, ignore_errors=True)
    return results


def _choose_sides(settings: EvaluationSettings) -> dict[str, tuple[ClipSet, ClipSet]]:
    """Return the real and the generated clips, and "frames" where the protocol has other sets for these."""
    if settings.protocol == STYLEGAN_V:
        sides = stylegan_v.choose_sides(settings)
    else:
        of_fake = {"interval": 1, "rate": None, "crop": crop_of_generated(settings.crop)}
        of_real, of_generated = settings.clips
        real = settings.choose(settings.real, of_real)
        sides = {"clips": (real, settings.choose(settings.fake, of_generated, **of_fake))}
    for clips in chain(*sides.values()):
        require_enough(clips)
    return sides


def _build(settings: EvaluationSettings, state: PartialState) -> dict[str, Measure]:
    measures: dict[str, Measure] = {}

    def build() -> None:
        measures.update(build_measures(settings.metrics, settings.weights, state.device, settings.flow))
        for measure in measures.values():
            measure.extractor.rows(settings.frames)
            if settings.protocol == STYLEGAN_V:
                measure.population = True

    on_main(state, build)
    if not measures:
        build()  # the main process has fetched the weights by now
    return measures


def _compute(
    settings: EvaluationSettings,
    measures: Mapping[str, Measure],
    real: Mapping[str, Features],
    fake: Mapping[str, Features],
    sides: Mapping[str, tuple[ClipSet, ClipSet]],
) -> Results:
    sets = {}
    for kind, pair in sides.items():
        more = "" if kind == "clips" else f" {kind}"
        sets |= {
            f"{name}{more}": side.facts() for name, side in zip(("real", "generated"), pair, strict=True)
        }
    results = Results(_protocol(settings, measures), sets, corpus=settings.corpus)
    for measure in measures.values():
        name = measure.extractor.identity["name"]
        values = measure.compare(real[name], fake[name])
        halves = between_halves(measure, real[name], settings.seed)
        again = bootstrap(measure, real[name], fake[name], settings.bootstrap, settings.seed)
        for figure in measure.distances:
            value = values[figure.key]
            interval = spread(value, again.get(figure.key, []), least=0.0)
            results.distances[figure.key] = Distance(
                figure.title, figure.unit, value, halves.get(figure.key), interval
            )
        of_real, of_fake = measure.describe(real[name]), measure.describe(fake[name])
        for figure in measure.scores:
            key = figure.key
            results.scores[key] = Score(
                figure.title,
                figure.unit,
                figure.better,
                of_real[key],
                of_fake[key],
                spread(of_real[key], again.get(("real", key), [])),
                spread(of_fake[key], again.get(("generated", key), [])),
            )
    return results


def _protocol(settings: EvaluationSettings, measures: Mapping[str, Measure]) -> dict[str, Any]:
    versions = library_versions() | {name: metadata.version(name) for name in LIBRARIES}
    published = settings.protocol == STYLEGAN_V
    return {
        "name": settings.protocol,
        "metrics": list(settings.metrics),
        "clips_asked": dict(zip(("real", "generated"), settings.clips, strict=True)),
        "frames": settings.frames,
        "size": list(settings.size),
        "seed": settings.seed,
        "choice": stylegan_v.CHOICE if published else CHOICE,
        "crop": crop_in_words(settings.crop),
        "resize": (stylegan_v.LANCZOS_JPEG if published else RESIZE).words,
        "covariance": "divided by n" if published else "divided by n - 1",
        "bootstrap_replicates": settings.bootstrap,
        "extractors": {name: measure.extractor.identity for name, measure in measures.items()},
        "versions": versions,
    }
