"""The paper's own rows (Tables 2 and 3), to stand beside this run's metrics."""

from __future__ import annotations

from collections.abc import Mapping

from medsora.runtime.markdown import markdown_table

CORPORA = {
    "colonoscopic": "Colonoscopic",
    "cholectriplet": "CholecTriplet",
    "kvasir_capsule": "Kvasir-Capsule",
}
PAPER_PROTOCOL = {"real clips": 2048, "generated clips": 2048, "frames": 16, "size": [128, 128]}

# per corpus of CORPORA: FVD, CD-FVD, FID, IS
TABLE_2_METRICS = {"fvd": "FVD↓", "cd_fvd": "CD-FVD↓", "fid": "FID↓", "inception_score": "IS↑"}
# fmt: off
TABLE_2 = {
    "StyleGAN-V": (1994.1, 630.87, 226.59, 1.95, 648.37, 747.35, 86.26, 3.37, 183.82, 854.42, 29.99, 2.76),
    "LVDM": (1271.2, 620.41, 97.56, 1.91, 1007.9, 1314.0, 109.02, 3.20, 1013.6, 750.62, 196.35, 1.45),
    "MoStGAN-V": (437.96, 332.93, 53.42, 3.31, 446.17, 461.18, 72.61, 3.56, 89.74, 89.11, 15.52, 2.53),
    "Endora": (468.37, 393.19, 13.75, 3.86, 383.88, 575.53, 30.02, 3.58, 114.36, 96.68, 18.33, 2.31),
    "MedSora-B": (462.04, 332.23, 15.47, 3.88, 447.78, 447.69, 24.98, 3.63, 92.36, 86.43, 12.06, 2.38),
    "MedSora-L": (429.35, 310.58, 13.42, 3.93, 400.60, 412.52, 20.02, 3.98, 76.71, 80.50, 10.48, 2.44),
}
# fmt: on
TABLE_3 = {"Endora": (95.43, 91.15, 90.70), "MedSora-B": (97.17, 94.19, 94.02)}


TABLE_3_METRICS = {"frame_consistency": "Frame Consistency, %"}
# Table 1 of Endora's paper (arXiv 2403.11050), scored by the protocol stylegan-v: FVD, FID, IS
# fmt: off
ENDORA_TABLE_1 = {
    "StyleGAN-V": (2110.7, 226.14, 2.12, 594.1, 87.46, 3.36, 183.5, 31.61, 2.77),
    "LVDM": (1036.7, 96.85, 1.93, 1361.5, 91.25, 2.65, 1027.8, 200.9, 1.46),
    "MoStGAN-V": (468.5, 53.17, 3.37, 416.2, 72.87, 3.56, 82.77, 17.34, 2.53),
    "Endora": (460.7, 13.41, 3.90, 236.2, 11.20, 4.09, 72.25, 10.61, 2.54),
}
# fmt: on
ENDORA_METRICS = {key: title for key, title in TABLE_2_METRICS.items() if key != "cd_fvd"}


def paper_tables(rows: Mapping[str, Mapping[str, float]], corpus: str | None, *, published: bool) -> str:
    """Return the paper's tables in Markdown, with this run's `rows`, metrics by key, below the paper's.

    Only the columns of `corpus`, and of the metrics that every row has (values by key: `fvd`, `cd_fvd`,
    `fid`, `inception_score`, `frame_consistency`); empty without a corpus or such a metric.
    `published` adds the values of Endora's paper, which the protocol stylegan-v gave.
    """
    if corpus is None:
        return ""
    tables = [("Table 2", TABLE_2, TABLE_2_METRICS), ("Table 3", TABLE_3, TABLE_3_METRICS)]
    if published:
        tables.append(("Endora's Table 1", ENDORA_TABLE_1, ENDORA_METRICS))
    lines = []
    for title, values, metrics in tables:
        measured = [key for key in metrics if all(key in row for row in rows.values())]
        if not measured:
            continue
        first = list(CORPORA).index(corpus) * len(metrics)
        columns = [first + list(metrics).index(key) for key in measured]
        theirs = [(name, [numbers[column] for column in columns]) for name, numbers in values.items()]
        scale = 100 if metrics is TABLE_3_METRICS else 1
        ours = [(name, [row[key] * scale for key in measured]) for name, row in rows.items()]
        head = ["Method", *(metrics[key] for key in measured)]
        cells = [[name, *map(_digits, numbers)] for name, numbers in [*theirs, *ours]]
        lines += [f"### {title}: {CORPORA[corpus]}", "", *markdown_table(head, cells), ""]
    return "\n".join(lines)


def _digits(value: float) -> str:
    """Return a number with the paper's digits; a dash for an undefined one."""
    return "–" if value != value else f"{value:.1f}" if value >= 1000 else f"{value:.2f}"


def number_text(value: float | None) -> str:
    """Return a number with four significant digits, or a dash for None and NaN."""
    return "–" if value is None or value != value else f"{value:.4g}" if abs(value) < 1000 else f"{value:.1f}"
