"""Reading real clips as the training clips were read: at the interval and with the crop of the model.

What `sample_ddim.py` writes names both (`medsora.sampling.synthetic`). Real clips at another interval move at
another speed: a perfect model then scores badly in every metric of motion.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from medsora.data.reading.find import find_sources
from medsora.evaluation.features.clip_set import DEFAULT_CROP, ClipSet
from medsora.evaluation.settings import STYLEGAN_V, EvaluationSettings
from medsora.sampling.synthetic import read_trained_on

DEFAULT_INTERVAL = 1  # where generated clips name none
MAX_FILE_RATE_RATIO = 1.3  # a file's rate may be a rounded guess
MAX_RATE_RATIO = 1.05


def fit_to_training(settings: EvaluationSettings) -> tuple[EvaluationSettings, dict[str, Any], list[str]]:
    """Return the settings with interval and crop filled in, what generated clips name, and what to warn of.

    An option that was given stays; a difference to what the clips name is a warning. Where they name a rate
    and no interval, real clips are taken by time, at that rate. Raises `BadInput` if there is no folder.
    """
    sources = find_sources(settings.fake).sources
    named = Counter(json.dumps(read_trained_on(source.path), sort_keys=True) for source in sources)
    trained_on = json.loads(named.most_common(1)[0][0]) if named else {}
    warnings = []
    if len(named) > 1:
        most = named.most_common(3)
        kinds = "; ".join(f"{count} clips: {in_words(json.loads(text))}" for text, count in most)
        warnings.append(
            f"the generated clips differ in how their models' training clips were read ({kinds}); the first "
            "of these decides here: evaluate each model's clips alone."
        )
    published, values = settings.protocol == STYLEGAN_V, {}
    if settings.interval is None and settings.rate is None and "interval" not in trained_on:
        values["rate"] = trained_on.get("rate")
    by_time = values.get("rate", settings.rate) is not None
    for name, default in (("interval", DEFAULT_INTERVAL), ("crop", DEFAULT_CROP)):
        if name == "interval" and by_time:
            continue
        given, theirs = getattr(settings, name), trained_on.get(name)
        theirs = tuple(theirs) if isinstance(theirs, list) else theirs
        values[name] = given if given is not None else default if theirs is None else theirs
        if theirs not in (None, values[name]):
            advice = "the protocol stylegan-v demands it" if published else f"leave --{name} out"
            warnings.append(
                f"the clips of --real are read with {name} {given}, but the generated clips' model was "
                f"trained with {name} {theirs}: the two sides are not alike; {advice}."
            )
    return replace(settings, **values), trained_on, warnings


def unlike_rates(trained_on: dict[str, Any], real: ClipSet, fake: ClipSet) -> list[str]:
    """Return a warning if real clips show more or fewer frames per second than generated ones; else nothing.

    The rate that the model was trained at decides; without one, and without an interval, the generated files'
    own.
    """
    ours, theirs = real.rate, trained_on.get("rate")
    if theirs is not None:
        largest, whose = MAX_RATE_RATIO, f"the generated clips' model was trained at {theirs:.4g}"
    elif "interval" not in trained_on and fake.rate is not None:
        theirs = fake.rate
        largest, whose = MAX_FILE_RATE_RATIO, f"generated ones play at {theirs:.4g}"
    if ours is None or theirs is None or max(ours / theirs, theirs / ours) <= largest:
        return []
    return [
        f"{real.reference} clips are read at {ours:.4g} frames per second, but {whose}: motion is compared "
        f"at different speeds; give the interval of training, or --rate {theirs:.4g}."
    ]


def in_words(read: Mapping[str, Any]) -> str:
    """Return how clips are read, interval, rate and crop, as far as it is known."""
    return ", ".join(f"{name} {value}" for name, value in read.items() if value is not None) or "not named"
