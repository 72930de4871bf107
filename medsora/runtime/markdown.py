"""Tables in Markdown, as the pages of results hold them."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

EMPTY, NOT_RUN = "–", "not run"  # cells without a value


def markdown_table(head: Sequence[object], rows: Iterable[Sequence[object]], words: int = 1) -> list[str]:
    """Return the lines of a Markdown table; the first `words` columns are text, the others numbers."""
    first, *others = (f"| {' | '.join(map(str, cells))} |" for cells in (head, *rows))
    return [first, "|---" * words + "|---:" * (len(head) - words) + "|", *others]
