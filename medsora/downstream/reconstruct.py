"""`medsora downstream reconstruct`: do clips show one solid scene? Structure from motion, clip by clip."""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any, NamedTuple

import cv2
import numpy as np

from medsora.data.checking.check import DEFAULT_THREADS, SourceReport, check_folder
from medsora.data.phantom.truth import find_truth
from medsora.downstream import reconstruct_clip
from medsora.downstream.clips import evenly, to_short_side
from medsora.downstream.reconstruct_clip import CAMERAS, Geometry, Job
from medsora.downstream.reconstruct_report import POINTS, REGISTERED, REPROJECTION, TRACK, Report
from medsora.downstream.reconstruct_scores import errors_against, poses_bounds
from medsora.errors import BadInput, bad_input_from_errors, one_line
from medsora.runtime.digests import sealed, unsealed
from medsora.runtime.files import is_file, read_patiently, write_json, write_text, written_folder
from medsora.runtime.progress_bar import progress_bar

DARK = 12  # grey level (0-255) that a pixel must exceed in some frame, or it is the endoscope's mask
RIM = 1 / 32  # share of the shorter side; nearer to that mask no feature counts: its rim moves
WAIT_S, WAIT_PER_CPU_S = 600, 60  # on a busy machine; a clip that waits for good is given up, too
IDENTITY = "identity.txt"  # names the clip that an export was made of
OUT_OF_MEMORY = ("bad_alloc", "MemoryError")
LIMITS = {"frames": (3, 100), "size": (64, 1024), "features": (64, 16384), "max_clips": (1, 100_000)}
LIMITS |= {"time_limit": (1, 86_400), "memory_limit": (1, 1024), "threads": (1, 256), "interval": (1, 1000)}


class Clip(NamedTuple):
    """One clip to reconstruct: `numbers` are its frames in the source."""

    folder: str
    source: SourceReport
    numbers: list[int]


def add_options(add: Any) -> None:
    """Add the options of this command."""
    folders = "folders of videos, the first one is what the others are compared with: real=REAL ours=CLIPS"
    add("clips", nargs="+", metavar="NAME=DIR", help=folders)
    add("--out", required=True, type=Path, metavar="DIR", help="folder of the results")
    add("--frames", type=int, default=16, metavar="F", help="frames of a clip (default: 16)")
    every = "take every N-th frame of the videos: one N, or one per folder (default: 1)"
    add("--interval", type=int, nargs="+", default=[1], metavar="N", help=every)
    most = "clips per folder, one per video, evenly spread over it (default: 50)"
    add("--max-clips", type=int, default=50, metavar="N", help=most)
    add("--size", type=int, default=512, metavar="PX", help="shorter side to work on (default: 512)")
    add("--camera", choices=tuple(CAMERAS), default="simple-pinhole", help="(default: %(default)s)")
    focal = "focal length in units of the picture's shorter side (default: estimated for each clip)"
    add("--focal", type=float, metavar="F", help=focal)
    add(
        "--features",
        type=int,
        default=2048,
        metavar="N",
        help="maximum number of features per frame (default: 2048)",
    )
    add("--time-limit", type=int, default=120, metavar="S", help="CPU seconds of a clip (default: 120)")
    add("--memory-limit", type=int, default=4, metavar="GIB", help="memory of a clip (default: 4)")
    add("--threads", type=int, default=DEFAULT_THREADS, metavar="N", help="(default: %(default)s)")
    export = "keep each clip's images, sparse/0 and poses_bounds.npy for Gaussian splatting in DIR/clips"
    add("--export", action="store_true", help=export)
    add("--dry-run", action="store_true", help="read and check everything, reconstruct nothing")


def run(options: argparse.Namespace, command: str) -> None:
    """Reconstruct all clips that are not done; write results.md and results.json. Raises `BadInput`."""
    if options.focal is not None and not 0.1 <= options.focal <= 10:
        raise BadInput(f"--focal is {options.focal} but must be 0.1 to 10 times the picture's shorter side.")
    folders, intervals = options.clips, options.interval
    if len(intervals) not in (1, len(folders)):
        raise BadInput(
            f"--interval has {len(intervals)} numbers for {len(folders)} folders; give one or one per folder."
        )
    try:
        colmap = version("pycolmap")
    except PackageNotFoundError:
        raise ModuleNotFoundError("No module named 'pycolmap'", name="pycolmap") from None
    with bad_input_from_errors():
        steps = zip(folders.items(), intervals * len(folders), strict=False)
        clips = [clip for (name, root), step in steps for clip in _find_clips(name, root, step, options)]
        limits = options.memory_limit << 30, options.time_limit
        job = Job(options.camera, options.focal, options.features, *limits, options.export)
        kept = options.out / "clips.jsonl"
        done = _read_records(kept)
        records = dict(done)
        report = Report({name: [] for name in folders}, options.frames, options.size, job, colmap, command)
        left = 0
        for clip in progress_bar("reconstruct", clips, unit="clip"):
            frames = clip.source.read(0, 1, None, options.size, numbers=clip.numbers, resize=to_short_side)
            identity = _identity(frames, job, colmap, clip)
            record, place = done.get(identity), options.out / "clips" / clip.folder / clip.source.source.name
            finished = record is not None and record.get("limits", _limits(job)) == _limits(job)
            if not finished or (options.export and record[POINTS] and _exported(place) != identity):
                left += 1
                if options.dry_run:
                    continue
                record = {"identity": identity, "clip": clip.source.source.name, "frames": clip.numbers}
                export = place if options.export else None
                record |= _reconstruct(clip, frames, job, options.threads, export, identity)
                records[identity] = record
                write_text(kept, "".join(f"{json.dumps(sealed(each))}\n" for each in records.values()))
            report.records[clip.folder].append(record)
        if options.dry_run:
            noun = f"clip{'s' * (len(clips) != 1)}"
            print(f"{left} of {len(clips)} {noun} to reconstruct, into {options.out}: ready")
            return
        write_json(options.out / "results.json", report.values())
        write_text(options.out / "results.md", report.markdown())
    print(report.markdown())
    print(f"written: {options.out / 'results.md'}", file=sys.stderr)


def _find_clips(name: str, root: Path, interval: int, options: argparse.Namespace) -> list[Clip]:
    """Return the first clip of videos that have one, evenly spread over the folder in natural order."""
    report = check_folder(root, frames=options.frames, interval=interval)
    report.require_clips()
    if report.bad:
        first = f"{report.bad[0].source.name}: {report.bad[0].problem}"
        print(one_line(f"{name}: {len(report.bad)} left out, the first: {first}"), file=sys.stderr)
    usable = report.usable
    return [
        Clip(name, source, [source.windows[0].start + k * interval for k in range(options.frames)])
        for source in (usable[k] for k in evenly(min(options.max_clips, len(usable)), len(usable)))
    ]


def _identity(frames: np.ndarray, job: Job, colmap: str, clip: Clip) -> str:
    """Return a digest of all that a result depends on; the limits are kept beside those that hit them."""
    numbers = None if find_truth(clip.source.source.path) is None else clip.numbers
    facts = [frames.shape, job.camera, job.focal, job.features, colmap, numbers is not None, numbers]
    return hashlib.sha256(json.dumps(facts).encode() + frames.tobytes()).hexdigest()


def _limits(job: Job) -> list[int]:
    return [job.cpu_seconds, job.memory_bytes]


def _exported(place: Path) -> str | None:
    """Return the identity of the clip whose export is in `place`."""
    path = place / IDENTITY
    return read_patiently(Path.read_text, path) if path.is_file() else None


def _reconstruct(
    clip: Clip, frames: np.ndarray, job: Job, threads: int, place: Path | None, identity: str
) -> dict[str, Any]:
    """Return the clip's measures, or the `failure`, with the limits if it met one; fill the folder `place`.

    A failure without limits is tried again by the next call.
    """
    if place is not None and place.exists():
        shutil.rmtree(place)
    with tempfile.TemporaryDirectory(prefix="medsora-reconstruct-") as name:
        folder = Path(name)
        write_job(folder, frames, job)
        if ended := run_job(folder, job, threads):
            failure, at_limit = ended
            limits = _limits(job) if at_limit else None
            return {"failure": failure, "limits": limits, REGISTERED: None, POINTS: 0}
        if not (folder / "geometry.npz").is_file():
            return {REGISTERED: 0.0, POINTS: 0}
        geometry = Geometry.read(folder / "geometry.npz")
        truth = find_truth(clip.source.source.path)
        if place is not None and len(geometry.points):
            with written_folder(place) as kept:
                shutil.copytree(folder / "export", kept, dirs_exist_ok=True)
                np.save(kept / "poses_bounds.npy", poses_bounds(Geometry.read(folder / "export.npz")))
                write_text(kept / IDENTITY, identity)
        return measure(geometry, len(frames)) | (
            {} if truth is None else {"truth": errors_against(truth, clip.numbers, geometry)}
        )


def measure(geometry: Geometry, frames: int) -> dict[str, float]:
    """Return the measures of a reconstruction of a clip of `frames` frames."""
    scores = {REGISTERED: 100 * len(geometry.frames) / frames, POINTS: len(geometry.points)}
    if len(geometry.points):
        scores[REPROJECTION] = float(geometry.errors.mean())
        scores[TRACK] = len(geometry.seen) / len(geometry.points)
    return scores | {"focal": float(geometry.camera[0] / geometry.size.min())}


def write_job(folder: Path, frames: np.ndarray, job: Job) -> None:
    """Write what `reconstruct_clip` reads: the frames, uint8 (F, h, w, 3), and where they show something."""
    (folder / "images").mkdir(parents=True)
    for number, frame in enumerate(frames):
        _write_png(folder / "images" / f"{number:04d}.png", cv2.cvtColor(frame, cv2.COLOR_RGB2BGR))
    lit = cv2.copyMakeBorder((frames.max((0, 3)) > DARK).astype(np.uint8), 1, 1, 1, 1, cv2.BORDER_REPLICATE)
    rim = 2 * round(RIM * min(lit.shape)) + 1
    shown = cv2.erode(lit, np.ones((rim, rim), np.uint8))[1:-1, 1:-1]
    _write_png(folder / "mask.png", 255 * shown)
    job.write(folder / "job.json")


def _write_png(path: Path, picture: np.ndarray) -> None:
    if not cv2.imwrite(str(path), picture):
        raise OSError(f"{path} cannot be written: make room, or let TMPDIR name another folder.")


def run_job(folder: Path, job: Job, threads: int) -> tuple[str, bool] | None:
    """Run `reconstruct_clip` on a folder; return why it was given up, and whether a limit of `job` was met.

    None: it ended by itself.
    """
    words = [sys.executable, "-P", reconstruct_clip.__file__, str(folder), str(threads)]
    wall_s = WAIT_S + WAIT_PER_CPU_S * job.cpu_seconds
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1"}
    try:
        ended = subprocess.run(words, capture_output=True, timeout=wall_s, env=environment, check=False)
    except subprocess.TimeoutExpired:
        return f"not done after {wall_s} seconds", False
    if ended.returncode == -signal.SIGXCPU:
        return f"not done after {job.cpu_seconds} CPU seconds", True
    output = ended.stderr.decode(errors="replace").strip()
    if ended.returncode and any(word in output for word in OUT_OF_MEMORY):
        return f"more than {job.memory_bytes / 2**30:g} GiB of memory", True
    if ended.returncode:
        last = output.splitlines()[-1][:200] if output else "no message"
        return f"COLMAP failed ({ended.returncode}): {last}", False
    return None


def _read_records(path: Path) -> dict[str, dict[str, Any]]:
    """Return the last record of each identity; a last line that was cut off is left out."""
    lines = read_patiently(Path.read_bytes, path).splitlines(keepends=True) if is_file(path) else []
    try:
        records = [unsealed(json.loads(line)) for line in lines if line.endswith(b"\n")]
        return {record["identity"]: record for record in records}
    except (KeyError, TypeError, ValueError) as error:
        raise BadInput(f"{path} holds no results ({error}); take another --out.") from error
