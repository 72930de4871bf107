"""One evaluation from two folders to metrics: what `evaluate.py` calls, and Python may."""

from __future__ import annotations

import shutil
import sys
from collections.abc import Mapping, Sequence
from importlib import metadata
from pathlib import Path
from typing import Any

import numpy as np
from accelerate import PartialState

from medsora.config.crop import crop_in_words, crop_of_generated
from medsora.data.sheet import SHEET_NAME
from medsora.errors import bad_input_from_errors
from medsora.evaluation import stylegan_v
from medsora.evaluation.bootstrap import between_halves, bootstrap
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
from medsora.evaluation.report.results import Results
from medsora.evaluation.report.warnings import require_enough, result_warnings
from medsora.evaluation.settings import STYLEGAN_V, EvaluationSettings
from medsora.evaluation.training_clips import fit_to_training, unlike_rates
from medsora.runtime.processes import check_same_folders, in_process_group, on_main
from medsora.runtime.versions import library_versions

CHOICE = "clips without overlap from every usable video, then a seeded permutation's first clips"
BY_FRAME = ("inception",)  # extractors that see single frames
MIN_VIDEOS = 10  # minimum in a set; with fewer, the bootstrap draws clips instead of whole videos
LIBRARIES = ("numpy", "scipy", "opencv-python-headless", "av", "pillow", "torchvision", "transformers")
LIBRARIES += ("torch-fidelity",)


def evaluate(real: str | Path, fake: str | Path, **options: Any) -> Results | None:
    """Compare the generated clips below `fake` with the real ones below `real`; write and return the results.

    `options` are the fields of `EvaluationSettings`. In several processes the main one returns the results,
    the others None. Raises `BadInput`, in one sentence, for anything that cannot be used.
    """
    settings = EvaluationSettings(real, fake, **options)
    with in_process_group() as state:
        return _run(settings, state)


def _run(settings: EvaluationSettings, state: PartialState) -> Results | None:
    check_same_folders(output=settings.out, cache=settings.cache)
    measures = build(settings, state)  # weights that are missing are reported before anything is decoded
    settings, trained_on, warnings = on_main(state, lambda: fit_to_training(settings))
    reals, fakes = on_main(state, lambda: [choose_side(settings, generated=side) for side in (False, True)])
    real, fake = reals["clips"], fakes["clips"]
    scratch = settings.out / ".features"
    of_real = extract_side(settings, reals, measures, state, folder=settings.cache, label=real.reference)
    of_fake = extract_side(settings, fakes, measures, state, folder=scratch, label="generated")
    audited = None
    if settings.memorised is not None:
        # the features of the audit: I3D's where it is among the metrics, else the pyramid's
        of_audit = measures["fvd"].extractor if "fvd" in measures else PyramidExtractor(state.device)
        audited = audit(settings, fake, real, of_audit, state, scratch)
    if not state.is_main_process:
        return None
    results = start_results(settings, measures, reals, fakes)
    for measure in measures.values():
        score(settings, measure, [reals, fakes], [of_real, of_fake], [results])
    results.memorisation = audited
    results.protocol["trained_on"] = trained_on
    with bad_input_from_errors():
        warnings += warn(settings, reals, fakes, of_real, of_fake, trained_on, results)
        warnings += few_videos(settings, reals, {"generated": fakes})
    results.warnings = list(dict.fromkeys(warnings))
    for warning in results.warnings:
        print(f"warning: {warning}", file=sys.stderr)
    with bad_input_from_errors():
        results.write(settings.out)
        write_sheet(settings.out / SHEET_NAME, real, fake)
        if results.distances:  # the Inception Score and Frame Consistency have none
            draw_distances(settings.out / "distances.png", results.distances, real.reference)
        if "motion" in measures:
            moving = {real.reference: of_real["motion"], "generated": of_fake["motion"]}
            draw_motion(settings.out / "motion.png", moving)
    shutil.rmtree(scratch, ignore_errors=True)
    return results


def choose_side(settings: EvaluationSettings, *, generated: bool) -> dict[str, ClipSet]:
    """Return one side's "clips", and "frames" where the protocol has another set for these.

    Raises `BadInput` for a folder without enough of them.
    """
    if settings.protocol == STYLEGAN_V:
        side = stylegan_v.choose_side(settings, generated=generated)
    elif generated:
        crop = crop_of_generated(settings.crop)
        read = {"interval": 1, "rate": None, "crop": crop, "generated": True}
        side = {"clips": settings.choose(settings.fake, settings.clips[1], **read)}
    else:
        side = {"clips": settings.choose(settings.real, settings.clips[0], **settings.of_real)}
    return {kind: require_enough(clips) for kind, clips in side.items()}


def score(
    settings: EvaluationSettings,
    measure: Measure,
    sides: Sequence[Mapping[str, ClipSet]],
    features: Sequence[Mapping[str, Features]],
    results: Sequence[Results],
) -> list[dict]:
    """Add a measure's metrics to the results of each generated set; return their replicates (`bootstrap`).

    The first of `sides` and of `features` is the real one, which has no results.
    """
    name = measure.extractor.identity["name"]
    kind = _kind_of(sides[0], name)
    real, *fakes = (of[name] for of in features)
    videos = [_drawn_videos(side[kind]) for side in sides]
    halves = between_halves(measure, real, settings.seed)
    again = bootstrap(measure, real, fakes, settings.bootstrap, settings.seed, videos)
    for one, fake, replicates in zip(results, fakes, again, strict=True):
        one.add(measure, real, fake, halves, replicates)
    return again


def _kind_of(side: Mapping[str, ClipSet], extractor: str) -> str:
    """Return which of a side's sets, "clips" or "frames", the extractor of this name sees."""
    return "frames" if extractor in BY_FRAME and "frames" in side else "clips"


def _drawn_videos(clips: ClipSet) -> np.ndarray | None:
    """Return each clip's video, to draw whole videos, or None where there are too few of them."""
    videos = clips.videos
    return videos if videos.max() + 1 >= MIN_VIDEOS else None


def few_videos(
    settings: EvaluationSettings, reals: Mapping[str, ClipSet], sides: Mapping[str, Mapping[str, ClipSet]]
) -> list[str]:
    """Return the warning that clips are drawn because a set has too few videos, if one has."""
    few = [
        f"{name} {clips.videos.max() + 1}"
        for name, side in {reals["clips"].reference: reals, **sides}.items()
        for clips in side.values()
        if _drawn_videos(clips) is None and len(clips) > clips.videos.max() + 1
    ]
    if not few or not settings.bootstrap:
        return []
    return [
        f"too few videos to re-sample ({', '.join(few)}; {MIN_VIDEOS} are needed): their clips are drawn as "
        "if they were independent, so intervals are too narrow."
    ]


def extract_side(
    settings: EvaluationSettings,
    side: Mapping[str, ClipSet],
    measures: Mapping[str, Measure],
    state: PartialState,
    *,
    folder: Path,
    label: str,
) -> dict[str, Features]:
    """Return a side's features by the extractors' names, of "pixel" always; FID and IS share one."""
    extractors = {measure.extractor.identity["name"]: measure.extractor for measure in measures.values()}
    extractors.setdefault("pixel", PixelExtractor())  # finds black clips and copies
    features: dict[str, Features] = {}
    for kind, clips in side.items():
        mine = {name: one for name, one in extractors.items() if _kind_of(side, name) == kind}
        at_once = settings.batch_size * settings.frames // clips.frames
        features |= extract(clips, mine, folder, state, batch_size=at_once, label=label)
    return features


def warn(
    settings: EvaluationSettings,
    reals: Mapping[str, ClipSet],
    fakes: Mapping[str, ClipSet],
    of_real: Mapping[str, Features],
    of_fake: Mapping[str, Features],
    trained_on: dict[str, Any],
    results: Results,
) -> list[str]:
    """Return what a reader of one generated set's metrics must be warned of, the gravest first."""
    real, fake = reals["clips"], fakes["clips"]
    warnings = degenerate(real, fake, of_real["pixel"], of_fake["pixel"])
    if settings.protocol != STYLEGAN_V:  # whose interval is 1 at any frame rate
        warnings += unlike_rates(trained_on, real, fake)
    return warnings + result_warnings(settings, real, fake, results)


def build(settings: EvaluationSettings, state: PartialState) -> dict[str, Measure]:
    """Return the measures by name. Raises `BadInput` for weights that are missing or do not fit."""
    measures: dict[str, Measure] = {}

    def fill() -> None:
        measures.update(build_measures(settings.metrics, settings.weights, state.device, settings.flow))
        for measure in measures.values():
            measure.extractor.rows(settings.frames)
            if settings.protocol == STYLEGAN_V:
                measure.published = True

    on_main(state, fill)
    if not measures:
        fill()  # the main process has fetched the weights by now
    return measures


def start_results(
    settings: EvaluationSettings,
    measures: Mapping[str, Measure],
    reals: Mapping[str, ClipSet],
    fakes: Mapping[str, ClipSet],
) -> Results:
    """Return results without metrics: the protocol and the description of both sides' clips."""
    sets = {}
    for kind in reals:
        more = "" if kind == "clips" else f" {kind}"
        for name, clips in (("real", reals[kind]), ("generated", fakes[kind])):
            drawn = "single clips" if _drawn_videos(clips) is None else "whole videos"
            sets[f"{name}{more}"] = clips.facts() | {"bootstrap_draws": drawn}
        sets[f"real{more}"]["called"] = reals[kind].reference
    return Results(_protocol(settings, measures), sets, corpus=settings.corpus)


def _protocol(settings: EvaluationSettings, measures: Mapping[str, Measure]) -> dict[str, Any]:
    versions = library_versions() | {name: metadata.version(name) for name in LIBRARIES}
    published = settings.protocol == STYLEGAN_V
    return {
        "name": settings.protocol,
        "metrics": list(settings.metrics),
        **({} if settings.label is None else {"label of real clips": settings.label}),
        "clips_asked": dict(zip(("real", "generated"), settings.clips, strict=True)),
        "frames": settings.frames,
        "size": list(settings.size),
        "seed": settings.seed,
        "choice": stylegan_v.CHOICE if published else CHOICE,
        "crop": crop_in_words(settings.crop),
        "resize": (stylegan_v.LANCZOS_JPEG if published else RESIZE).words,
        "covariance": "divided by n" if published else "divided by n - 1",
        "inception_splits": "ten, consecutive" if published else "ten, random",
        "bootstrap_replicates": settings.bootstrap,
        "extractors": {name: measure.extractor.identity for name, measure in measures.items()},
        "versions": versions,
    }
