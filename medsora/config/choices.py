"""Names that a config or a command line chooses from, each list once; importing this file loads no torch.

The leaves have their own: `kernels.choices`, `flow_prior.choices`, `vae.choices`.
"""

from __future__ import annotations

MIXINGS = ("isolated", "mixed")
LAYOUTS = ("interlaced", "separate")  # how Endora orders its spatial and temporal blocks
PREDICTIONS = ("noise", "velocity")
LOSS_TARGETS = (*PREDICTIONS, "data")
LR_DECAYS = ("none", "cosine")
OPTIMIZERS = ("adamw", "adam", "sgd", "rmsprop", "nadam", "radam")  # classes of torch.optim, in lower case
MATMUL_PRECISIONS = ("highest", "high", "medium")  # torch.set_float32_matmul_precision
PRECISIONS = ("no", "bf16", "fp16")  # mixed precision in training, as accelerate names it
PHANTOM_LOOKS = ("white-light", "narrow-band")
TRACKERS = ("tensorboard", "wandb", "trackio")  # names of packages, too

SAMPLERS = ("ddim", "dpmpp", "unipc", "ddpm")
DTYPES = ("fp32", "bf16", "fp16")
COMPILE = ("auto", "on", "off")
FORMATS = ("mp4", "frames")

METRICS = ("fvd", "cd-fvd", "fid", "is", "fc", "motion", "pixel")
WEIGHT_FREE = ("motion", "pixel")
