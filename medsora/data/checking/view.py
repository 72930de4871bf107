"""Reports of a check: a table of every source, totals in words, a contact sheet of the clips."""

from __future__ import annotations

import numpy as np
from rich import box
from rich.table import Table
from rich.text import Text

from medsora.data.checking.check import MARKS, CheckReport, SourceReport
from medsora.data.checking.windows import clip_span
from medsora.data.sheet import contact_sheet
from medsora.errors import one_line

SHEET_ROWS = 24
NAMED_FILES = 3
LABELS_NAME = "labels.csv"  # as the phantom and many data sets call it


def check_table(report: CheckReport) -> Table:
    """Return a rich table: every source with its format, size, clips, and what is wrong with it."""
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False)
    table.add_column("file", overflow="fold")
    for column in ("container", "codec"):
        table.add_column(column)
    for column in ("frames", "fps", "size", "clips"):
        table.add_column(column, justify="right", no_wrap=True)
    table.add_column("applied", overflow="fold")
    table.add_column("remarks", overflow="fold")
    originals = {name: group[0] for group in report.copies for name in group[1:]}
    for source in report.reports:
        table.add_row(*_cells(source, originals.get(source.source.name)))
    for name, reason in report.unlisted.items():
        table.add_row(*_unused(name, "folder", "", Text(f"left out: {reason}", "red")))
    for some in report.left_out:
        remark = Text(one_line(f"left out: {some.kind}, {some.words()}"), "yellow")
        table.add_row(*_unused(some.name, "frames", str(some.count), remark))
    return table


def _unused(name: str, container: str, frames: str, remark: Text) -> list[Text | str]:
    return [Text(one_line(name)), container, "", frames, "", "", "0", "", remark]


def check_totals(report: CheckReport, *, remarks: bool = True) -> str:
    """Return the totals in one or two sentences, and with `remarks` what borders and marks there are."""
    frames = sum(source.scan.frames for source in report.usable)
    if report.rate is None:
        span = f"{clip_span(report.frames, report.interval)} frames"
    else:
        span = f"{(report.frames - 1) / report.rate:.3g} s"
    text = (
        f"{len(report.usable)} of {len(report.reports)} sources can be used: {frames} frames, {report.clips} "
        f"clips of {report.frames} frames {report.pace} (each spans {span})."
    )
    if remarks and (cropped := sum(source.crop_words is not None for source in report.usable)):
        text += f" Borders are cut off in {cropped}."
    if remarks and (marked := sum(bool(source.marks) for source in report.usable)):
        text += (
            f" Possible burnt-in text or logo in {marked} source{'s' * (marked != 1)}: a model would learn "
            "it; crop it (data.crop) or remove the files."
        )
    notes = (report.split_note, report.copies_note, report.rates_note, report.generated_note)
    for note in filter(None, notes if remarks else ()):
        text += f" {note[0].upper()}{note[1:]}."
    if others := report.other_files:
        files, are = ("file", "is") if len(others) == 1 else ("files", "are")
        named = ", ".join([*others[:NAMED_FILES], *["..."] * (len(others) > NAMED_FILES)])
        text += f" {len(others)} {files} without a video or image suffix {are} ignored ({named})."
        if LABELS_NAME in others:
            text += f" To train with the labels in {LABELS_NAME}, set data.labels={LABELS_NAME}."
    lines = [text, *(f"{note[0].upper()}{note[1:]}." for note in (report.picture_notes() if remarks else ()))]
    return "\n".join(map(one_line, lines))


def check_sheet(report: CheckReport, size: int | tuple[int, int]) -> np.ndarray:
    """Return a contact sheet with one clip, the middle one, of each of the first usable sources.

    Frames are shown as training sees them: `size` pixels, uint8. Raises `UnreadableVideo` if one no longer
    decodes.
    """
    rows = []
    for source in report.usable[:SHEET_ROWS]:
        start = source.windows[len(source.windows) // 2].start
        frames = source.read(start, report.frames, report.interval, size)
        scan = source.scan
        about = f"{scan.container}/{scan.codec} {scan.width}x{scan.height}, {scan.frames} frames"
        rows.append((one_line(f"{source.source.name}@{start}   {about}"), frames))
    return contact_sheet(rows)


def _cells(source: SourceReport, original: str | None) -> list[Text | str]:
    scan = source.scan
    marks = f"{MARKS} {source.marks_words}" if source.marks_words else None
    copied = f"copy of {original}" if original else None
    notes = (source.shots_words, source.uneven_words, *scan.remarks, source.crop_words, marks, copied)
    remarks = one_line(source.problem or "; ".join(filter(None, notes)))
    return [
        Text(one_line(source.source.name)),
        scan.container,
        scan.codec,
        str(scan.frames),
        f"{scan.fps:.4g}" if scan.fps else "-",
        f"{scan.width}x{scan.height}" if scan.width else "-",
        str(len(source.windows)),
        source.applied_words,
        Text(remarks, "red" if source.problem else "yellow"),
    ]
