"""Several generated sets against one real set, scored alike: `evaluate.py --real R --fake A B C`."""

from __future__ import annotations

import sys
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from accelerate import PartialState

from medsora.data.sheet import SHEET_NAME
from medsora.errors import BadInput, bad_input_from_errors, one_line
from medsora.evaluation.bootstrap import MIN_REPLICATES, differences
from medsora.evaluation.features.clip_set import REFERENCES, ClipSet
from medsora.evaluation.metrics.measure import Measure
from medsora.evaluation.report.comparison import Comparison, Ranking
from medsora.evaluation.report.plots import draw_motion, write_comparison_sheet
from medsora.evaluation.report.results import AS_REAL
from medsora.evaluation.run import build, choose_side, extract_side, few_videos, score, start_results, warn
from medsora.evaluation.settings import STYLEGAN_V, EvaluationSettings
from medsora.evaluation.training_clips import fit_to_training, in_words
from medsora.runtime.processes import in_process_group, on_main
from medsora.runtime.progress_bar import progress_bar

DEFAULT_REPLICATES = 200
Side = dict[str, ClipSet]


def compare(
    real: str | Path, fakes: Mapping[str, str | Path], *, dry_run: bool = False, **options: Any
) -> Comparison | None:
    """Compare each of `fakes`, folders of generated clips by name, with `real`; write and return the results.

    Every set is scored on equally many clips. `options` are those of `evaluate`; `bootstrap` is
    `DEFAULT_REPLICATES` unless given. `dry_run` prints which clips would be scored and returns None. In
    several processes the main one returns the results, the others None. Raises `BadInput`, in one sentence,
    for anything that cannot be used.
    """
    first = next(iter(fakes.values()))
    settings = EvaluationSettings(real, first, **{"bootstrap": DEFAULT_REPLICATES} | options)
    if settings.memorised is not None:
        raise BadInput("--memorised audits one model; give it with one --fake at a time.")
    if 0 < settings.bootstrap < MIN_REPLICATES:
        raise BadInput(
            f"bootstrap is {settings.bootstrap}, but ranks need at least {MIN_REPLICATES} re-samplings; give "
            "0 for values alone."
        )
    with in_process_group() as state:
        return _run(settings, {name: Path(folder) for name, folder in fakes.items()}, state, dry_run)


def name_folders(folders: Sequence[str | Path], names: Sequence[str] | None = None) -> dict[str, Path]:
    """Return the folders by `names`, or by as much of the ends of their paths as makes them unique.

    Raises `BadInput` for a folder that comes twice, and for names that are too many, too few or unfit.
    """
    paths = [Path(folder) for folder in folders]
    resolved = [path.resolve() for path in paths]
    if twice := [path for path in paths if resolved.count(path.resolve()) > 1]:
        raise BadInput(f"{twice[0]} is given twice as --fake; give each folder once.")
    if names is None:
        names = [_shortest_end(path, resolved) for path in resolved]
    if len(names) != len(paths):
        raise BadInput(
            f"--names gives {len(names)} names for {len(paths)} folders of --fake; give one for each."
        )
    for name in names:
        if not name.strip() or not name.isprintable() or name in REFERENCES or names.count(name) > 1:
            raise BadInput(
                f"--names {name!r} cannot name a set: names must be printable, differ, and not be "
                f"{' or '.join(map(repr, REFERENCES))}."
            )
    return dict(zip(names, paths, strict=True))


def _shortest_end(path: Path, paths: Sequence[Path]) -> str:
    """Return as few of the last parts of `path` as no other one of `paths` ends in."""
    ends = [path.parts[-count:] for count in range(1, len(path.parts) + 1)]
    end = next(end for end in ends if sum(other.parts[-len(end) :] == end for other in paths) == 1)
    name = one_line("/".join(end))
    return f"{name} (generated)" if name in REFERENCES else name


def _run(
    settings: EvaluationSettings, fakes: Mapping[str, Path], state: PartialState, dry_run: bool
) -> Comparison | None:
    measures = build(settings, state)
    settings, trained_on, notes = on_main(state, lambda: _fit_to_all(settings, fakes))
    reals, sides, reduced = on_main(state, lambda: _choose(settings, fakes))
    if dry_run:
        if state.is_main_process:
            print("\n".join(_plan(settings, measures, reals, sides, [*notes, *reduced])))
        return None
    reference = reals["clips"].reference
    of_real = extract_side(settings, reals, measures, state, folder=settings.cache, label=reference)
    of_fakes = {
        name: extract_side(settings, side, measures, state, folder=settings.cache, label=f"{name}'s")
        for name, side in sides.items()
    }
    if not state.is_main_process:
        return None
    started = {name: start_results(settings, measures, reals, side) for name, side in sides.items()}
    comparison = Comparison(started)
    for measure in progress_bar("re-sampling", measures.values(), unit="metric", show=settings.bootstrap > 0):
        features = [of_real, *of_fakes.values()]
        replicates = score(settings, measure, [reals, *sides.values()], features, list(started.values()))
        _rank(comparison, measure, replicates)
    warnings_by_set: dict[str, list[str]] = {}
    for name, side in sides.items():
        results = comparison.results[name]
        with bad_input_from_errors():
            one = warn(settings, reals, side, of_real, of_fakes[name], trained_on[name], results)
        for warning in one:
            warnings_by_set.setdefault(warning, []).append(name)
    everyone = list(sides)
    comparison.warnings = [*notes, *reduced, *few_videos(settings, reals, sides)] + [
        warning if names == everyone else f"{', '.join(names)}: {warning}"
        for warning, names in warnings_by_set.items()
    ]
    for warning in comparison.warnings:
        print(f"warning: {warning}", file=sys.stderr)
    with bad_input_from_errors():
        shown = {reference: reals["clips"]} | {name: side["clips"] for name, side in sides.items()}
        write_comparison_sheet(settings.out / SHEET_NAME, shown)
        caption = "first, middle and last frame of up to three clips of each set"
        pictures = [(settings.out / SHEET_NAME, caption)]
        if "motion" in measures:
            moving = {reference: of_real["motion"]} | {name: of["motion"] for name, of in of_fakes.items()}
            draw_motion(settings.out / "motion.png", moving)
            pictures.append((settings.out / "motion.png", "how fast and where to pixels move"))
        comparison.write(settings.out, pictures)
    return comparison


def _fit_to_all(
    settings: EvaluationSettings, fakes: Mapping[str, Path]
) -> tuple[EvaluationSettings, dict[str, dict[str, Any]], list[str]]:
    """Return settings that read real clips in one way, what each set's clips name, and what to warn of."""
    fits = {name: fit_to_training(replace(settings, fake=folder)) for name, folder in fakes.items()}
    trained_on = {name: named for name, (_, named, _) in fits.items()}
    warnings = [f"{name}: {sentence}" for name, (_, _, sentences) in fits.items() for sentence in sentences]
    first, *others = [name for name in fits if trained_on[name]] or list(fits)
    chosen = fits[first][0]
    read = {"interval": chosen.interval, "rate": chosen.rate, "crop": chosen.crop}
    for name in others:
        theirs = {key: getattr(fits[name][0], key) for key in read}
        if theirs != read:
            raise BadInput(
                f"the clips of {first} name {in_words(read)}, those of {name} {in_words(theirs)}, but all "
                "are compared with the same clips of --real; give --interval (or --rate) and --crop."
            )
    unnamed = [name for name in fits if not trained_on[name]]
    if len(unnamed) < len(fits) and unnamed and settings.protocol != STYLEGAN_V:
        warnings.append(
            f"{', '.join(unnamed)}: the clips do not name how their model's training clips were read; the "
            f"clips of --real are read as {first}'s were ({in_words(read)})."
        )
    return replace(settings, **read), trained_on, warnings


def _choose(
    settings: EvaluationSettings, fakes: Mapping[str, Path]
) -> tuple[Side, dict[str, Side], list[str]]:
    """Return the real set, equally large generated ones, and a sentence if that leaves clips out."""
    reals = choose_side(settings, generated=False)
    sides = {name: choose_side(replace(settings, fake=one), generated=True) for name, one in fakes.items()}
    notes = []
    for kind in reals:
        counts = {name: len(side[kind]) for name, side in sides.items()}
        fewest = min(counts, key=lambda name: counts[name])
        sides = {name: side | {kind: side[kind].reduced_to(counts[fewest])} for name, side in sides.items()}
        if max(counts.values()) > counts[fewest]:
            notes.append(
                f"every generated set is scored on {counts[fewest]} {kind}, all that {fewest} has: unequal "
                "numbers would favour the larger set."
            )
    return reals, sides, notes


def _rank(comparison: Comparison, measure: Measure, again: Sequence[dict]) -> None:
    """Add the rankings of a measure's metrics; `again` are each set's replicates."""
    names = list(comparison.results)
    for metric in (*measure.distances, *measure.scores):
        if metric.better == AS_REAL:  # its distance is ranked
            continue
        values = [results.metrics()[metric.key] for results in comparison.results.values()]
        key = metric.key if metric in measure.distances else ("generated", metric.key)
        pairs = differences(values, [replicates.get(key, []) for replicates in again])
        named = {(names[i], names[j]): difference for (i, j), difference in pairs.items()}
        comparison.rankings[metric.key] = Ranking(metric.better, dict(zip(names, values, strict=True)), named)


def _plan(
    settings: EvaluationSettings,
    measures: Mapping[str, Measure],
    reals: Side,
    sides: Mapping[str, Side],
    notes: Sequence[str],
) -> list[str]:
    read = in_words({key: getattr(settings, key) for key in ("interval", "rate", "crop")})
    lines = [
        f"metrics: {', '.join(measures)}; clips of --real read with {read}; {settings.bootstrap} re-samplings"
    ]
    for name, side in {reals["clips"].reference: reals, **sides}.items():
        counts = ", ".join(f"{len(clips)} of {clips.available} {kind}" for kind, clips in side.items())
        lines.append(f"{name}: {counts} from {side['clips'].root}")
    return lines + [f"note: {note}" for note in notes]
