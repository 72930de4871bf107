"""Warnings for readers of the metrics: too few clips, shared clips, unequal handling."""

from __future__ import annotations

from medsora.errors import BadInput, one_line
from medsora.evaluation.bootstrap import MIN_REPLICATES
from medsora.evaluation.features.clip_set import ClipSet
from medsora.evaluation.metrics.motion import DIS_IDENTITY, DIS_NOTE
from medsora.evaluation.metrics.weight_files import READ_BY
from medsora.evaluation.report.paper_tables import number_text
from medsora.evaluation.report.results import Results
from medsora.evaluation.settings import EvaluationSettings
from medsora.evaluation.stylegan_v import MAX_GENERATED_FRAMES


def require_enough(clips: ClipSet) -> ClipSet:
    """Return `clips`; raises `BadInput` for a side that has too few clips for a covariance."""
    if len(clips) < 2:
        raise BadInput(
            f"{clips.root} gives {len(clips)} clip of {clips.frames} frames, but a distribution needs two at "
            "least; add videos, or lower --frames."
        )
    return clips


def result_warnings(
    settings: EvaluationSettings, real: ClipSet, fake: ClipSet, results: Results
) -> list[str]:
    """Return the sentences, the gravest first."""
    generated = real.report.generated_note
    sentences = [
        *([f"the folder of --real holds videos {generated}."] if generated else []),
        *_too_few(settings, real, fake, results),
        *_too_few_frames(results),
        *_few_replicates(settings),
        *_unused_weights(settings),
        *_borders_cut(settings, real, fake),
        *_flow_without_weights(results),
        *_unequal_files(real, fake),
        *_left_out(real),
        *_left_out(fake),
    ]
    return [one_line(caveat) for caveat in sentences]


def _too_few(settings: EvaluationSettings, real: ClipSet, fake: ClipSet, results: Results) -> list[str]:
    sides = zip((real.reference, "generated"), (real, fake), settings.clips, strict=True)
    few = [
        f"{len(clips)} {name} clips where {requested}"
        for name, clips, requested in sides
        if len(clips) < requested
    ]
    if not few:
        return []
    floors = [
        f"{distance.title}: {number_text(distance.real_halves)}"
        for key, distance in results.distances.items()
        if distance.real_halves is not None
        and (key.endswith("fvd") or key in ("fid", "untrained_pyramid_distance"))
    ]
    half = f"Two halves of the {real.reference} set, {len(real) // 2} clips each,"
    measured = f" {half} are already apart by {'; '.join(floors)}." if floors else ""
    advice = "" if settings.bootstrap else " --bootstrap 200 estimates the bias and an interval."
    return [
        f"only {' and '.join(few)} were requested: Fréchet distances over few clips come out too high, by "
        "about the inverse of their number, and the Inception Score too low; compare only runs whose "
        f"{real.reference} and generated counts are the same.{measured}{advice}"
    ]


def _too_few_frames(results: Results) -> list[str]:
    frames = results.sets.get("generated frames", {}).get("clips_used", MAX_GENERATED_FRAMES)
    if frames >= MAX_GENERATED_FRAMES:
        return []
    return [
        f"FID and IS are taken over {frames} generated frames, where published values are over "
        f"{MAX_GENERATED_FRAMES}: they come out too high and too low."
    ]


def _few_replicates(settings: EvaluationSettings) -> list[str]:
    if not 0 < settings.bootstrap < MIN_REPLICATES:
        return []
    return [
        f"--bootstrap {settings.bootstrap} is too few re-samplings for 95 % intervals, which come out too "
        f"narrow; give at least {MIN_REPLICATES}, better 200."
    ]


def _unused_weights(settings: EvaluationSettings) -> list[str]:
    read = {name for metric in settings.metrics for name in READ_BY.get(metric, ())}
    return [
        f"the weights {name} were given, but no metric of {', '.join(settings.metrics)} reads them; name "
        f"{'a VAE with --vae' if name == 'lpips' else 'the metric with --metrics'}, or leave them out."
        for name in sorted(set(settings.weights) - read)
    ]


def _borders_cut(settings: EvaluationSettings, real: ClipSet, fake: ClipSet) -> list[str]:
    if settings.crop != "auto" or not (real.cropped or fake.cropped):
        return []
    counts = f"{len(real.cropped)} {real.reference} and {len(fake.cropped)} generated videos"
    return [
        f"black borders are cut off {counts}, as training does by default; for a model of whole frames "
        "(data.crop: none) give --crop none, for one of fixed parts those parts."
    ]


def _flow_without_weights(results: Results) -> list[str]:
    if not (results.flow or "").startswith(DIS_IDENTITY["flow"]):
        return []
    return [f"{DIS_NOTE}; --weights raft_large=FILE or raft_small=FILE takes RAFT."]


def _unequal_files(real: ClipSet, fake: ClipSet) -> list[str]:
    notes = []
    if real.compressed != fake.compressed:
        lossy, exact = real.reference, "generated"
        if fake.compressed:
            lossy, exact = exact, lossy
        notes.append(
            f"the {lossy} files are compressed with loss and the {exact} ones without: that alone changes "
            "every distance; encode both sides alike."
        )
    for name, clips in ((real.reference, real), ("generated", fake)):
        height, width = clips.size
        sizes = {source.source.name: source.used_size for source, _ in clips.clips}
        small = [(file, h, w) for file, (h, w) in sizes.items() if h < height or w < width]
        if small:
            first, its_height, its_width = small[0]
            notes.append(
                f"{name} frames are enlarged to {width}x{height} pixels ({first} has {its_width}x"
                f"{its_height}); enlarged frames look blurred, choose a smaller --size."
            )
    return notes


def _left_out(clips: ClipSet) -> list[str]:
    bad = clips.report.bad
    if not bad:
        return []
    more = f" and {len(bad) - 1} more (see results.json)" if len(bad) > 1 else ""
    return [f"left out of {clips.root}: {bad[0].source.name}: {bad[0].problem}{more}."]
