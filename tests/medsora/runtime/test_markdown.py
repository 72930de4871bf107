"""medsora.runtime.markdown: the tables on pages of results."""

from __future__ import annotations

from medsora.runtime.markdown import markdown_table


def test_the_first_columns_are_words_and_the_others_numbers() -> None:
    assert markdown_table(["set", "clips", "FVD"], [["ours", 3, "1.5"], ["theirs", 4, "–"]]) == [
        "| set | clips | FVD |",
        "|---|---:|---:|",
        "| ours | 3 | 1.5 |",
        "| theirs | 4 | – |",
    ]
    assert markdown_table(["a", "b"], [], words=2) == ["| a | b |", "|---|---|"]
