"""Names that the flow prior's parts are chosen by; importing this file loads no torch."""

RAFT_VARIANTS = ("raft_large", "raft_small")
ESTIMATORS = (*RAFT_VARIANTS, "dis", "exact")
AVERAGINGS = ("aligned", "uniform")
PRIOR_KINDS = ("flow", "image")
IMAGE_SOURCES = ("tokens", "attention")
CORRELATIONS = ("sample", "batch")
