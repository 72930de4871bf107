"""The schema of a run's config: every key once, with its default, range, choices, meaning and resume rule.

Defaults are the paper's values (§4.1, Table 1, and SPEC where the paper is silent) except `data.crop`, which
the corpora's configs set back. Shipped configs override only what their data demand, and `phantom.yaml` what
a laptop CPU demands.

`medsora.config.checks` enforces the rules, `medsora.config.load` reads YAML, and `medsora.config.reference`
writes `docs/configuration.md` and `configs/schema.json` from this file.
"""

# ruff: noqa: RUF009 (`key` and `section` return dataclass fields)
from __future__ import annotations

import copy
import functools
import math
import operator
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, fields, is_dataclass, replace
from pathlib import Path
from typing import Any, get_type_hints

from medsora.config.choices import (
    LOSS_TARGETS,
    LR_DECAYS,
    MATMUL_PRECISIONS,
    MIXINGS,
    OPTIMIZERS,
    PHANTOM_LOOKS,
    PRECISIONS,
    PREDICTIONS,
    TRACKERS,
)
from medsora.config.presets import ENDOGEN_PRESETS, NAMED_PRESETS
from medsora.config.switches import SWITCHES
from medsora.flow_prior.choices import AVERAGINGS, CORRELATIONS, ESTIMATORS, IMAGE_SOURCES, PRIOR_KINDS
from medsora.kernels.choices import FASTEST_FIRST
from medsora.vae.choices import COMPENSATION_KINDS, LPIPS_TRUNKS, VAE_KINDS

DIFFUSION_STEPS = 1000
MAX_SIDE_PX = 4096

# Whether a resumed run may change a key: it may if the key does not change what a training step computes, or
# if it decides where the run ends.
FIXED, FREE, FREE_TO_EXTEND = "no", "yes", "yes, moving a decay's end"
STAGE_1, STAGE_2, STAGE_AR = "train_vae", "train_dit", "train_ar"
GENERATORS = (STAGE_2, STAGE_AR)
OTHER_BETAS = "; sgd takes the first as its momentum, rmsprop the second as its smoothing"
CACHE_PLACES = ("off", "disk")


@dataclass(frozen=True)
class Key:
    """Properties of a key besides its name, type and default."""

    meaning: str  # one sentence for the reference page
    choices: tuple[str, ...] = ()  # the words allowed; empty if any value of the key's type is
    above: float | None = None  # bounds of a number, or of each number in a list
    at_least: float | None = None
    at_most: float | None = None
    below: float | None = None
    pair: bool = False  # the list must hold two values
    nullable: bool = False  # null is allowed
    resume: str = FIXED  # or `FREE`, or `FREE_TO_EXTEND`: a run whose decay has another end reports it
    stage: tuple[str, ...] = ()  # the only stages that read the key; empty if all do
    output: bool = False  # the key names a folder that is written to
    was: str = ""  # its former name, which is still read

    def is_read_by(self, stage: str) -> bool:
        """Return whether `stage` reads the key."""
        return not self.stage or stage in self.stage

    @property
    def range(self) -> str:
        """The bounds in words; empty without any."""
        return " and ".join(f"{words} {bound}" for words, _, bound in self._bounds)

    def in_range(self, number: Any) -> bool:
        """Return whether `number` is a finite number within the bounds."""
        is_finite = isinstance(number, int | float) and math.isfinite(number)
        return is_finite and all(compare(number, bound) for _, compare, bound in self._bounds)

    @property
    def _bounds(self) -> list[tuple[str, Callable[[float, float], bool], float]]:
        bounds = (
            ("greater than", operator.gt, self.above),
            ("at least", operator.ge, self.at_least),
            ("at most", operator.le, self.at_most),
            ("below", operator.lt, self.below),
        )
        return [(words, compare, bound) for words, compare, bound in bounds if bound is not None]


def key(default: Any, meaning: str, **rules: Any) -> Any:
    """Return a dataclass field with this default and the `Key` that `meaning` and `rules` make."""
    make = {"default": default}
    if isinstance(default, list | dict):
        make = {"default_factory": lambda: copy.deepcopy(default)}
    return field(**make, metadata={"key": Key(meaning, **{"nullable": default is None, **rules})})


def section(kind: type, *stage: str) -> Any:
    """Return a dataclass field for a section of keys, all of them read by the named stages alone, if any."""
    return field(default_factory=kind, metadata={"key": Key(kind.__doc__, stage=stage)})


def epochs_key(default: int) -> Any:
    """Return the field of `epochs`, of which `default` are trained if `max_steps` is not given either."""
    meaning = f"Epochs to train, unless max_steps ends first; null: {default}, or as many as max_steps takes."
    return key(None, meaning, above=0, resume=FREE_TO_EXTEND)


def betas_key(default: list[float]) -> Any:
    """Return the field of `betas`."""
    return key(default, f"Betas of the optimiser{OTHER_BETAS}.", at_least=0, below=1, pair=True)


@dataclass
class RunConfig:
    """Folder of a run: stage 1 in `DIR/NAME/vae`, stage 2 in `DIR/NAME/dit-PRESET`."""

    name: str = key("run", "Name of the run's folder: one folder name, without slashes.", resume=FREE)
    dir: str = key("runs", "Folder that holds all runs.", resume=FREE, output=True)
    seed: int = key(0, "Seed of the split, the order of clips and all noise.", at_least=0)


@dataclass
class DataConfig:
    """Training clips."""

    root: str | None = key(None, "Folder of videos or of frame folders; null uses the phantom.")
    frames: int = key(
        16, "Frames per clip; stage 2 reads one more for the optical flow.", above=0, at_most=4097
    )
    size: Any = key(
        128, "Size in pixels: one number for squares, or [height, width].", above=0, at_most=MAX_SIDE_PX
    )
    interval: int | None = key(
        3,
        "Every how many source frames one is taken; null if data.rate is set.",
        above=0,
        at_most=10_000,
        nullable=True,
    )
    rate: float | None = key(
        None,
        "Frames per second, taken by time from videos of any frame rate; slower videos are left out. Instead "
        "of data.interval, which is null then.",
        above=0,
        at_most=1000,
    )
    clip_stride: int | None = key(
        None, "Source frames between the starts of enumerated clips; null: the span of one clip.", above=0
    )
    crop: Any = key(
        "auto", "Crop before resizing: auto (black borders), none, or the parts [top, bottom, left, right]."
    )
    flip: bool = key(True, "Mirror half of the training clips left to right.")
    holdout: float = key(
        0.1, "Part of the videos that is held out for validation, drawn by seed.", at_least=0, below=1
    )
    split_csv: str | None = key(
        None,
        "CSV with the columns file and split (train or held-out), or file and patient; null: by folders "
        "named train, val and test, or drawn by video.",
    )
    group: str | None = key(
        None,
        "Patients, each on one side of the split: folder (each folder is a patient), a CSV with the columns "
        "file and patient, or a regular expression with one group that finds the patient in a video's path; "
        "null: every video stands alone.",
    )
    labels: str = key(
        "none",
        "Labels: none, folders (a video's folder is its label), or a CSV with the columns file and label.",
        stage=GENERATORS,
    )
    balance: bool = key(False, "Draw every label equally often, whatever the folder holds.", stage=GENERATORS)
    workers: int = key(2, "Processes that decode videos.", at_least=0, at_most=256, resume=FREE)

    @property
    def height_width(self) -> tuple[int, int]:
        """The clip's size in pixels, (H, W)."""
        return (self.size, self.size) if isinstance(self.size, int) else tuple(self.size)

    @property
    def flips(self) -> tuple[bool, ...]:
        """Values of a clip's `flipped`: False and, if clips are mirrored, True."""
        return (False, True) if self.flip else (False,)


@dataclass
class PhantomConfig:
    """The procedural default data, rendered once when `data.root` is null."""

    videos: int = key(96, "Number of videos to render.", above=0, at_most=1_000_000)
    frames: int = key(33, "Frames per video.", above=0, at_most=100_000)
    seed: int = key(0, "Seed of the videos' content.", at_least=0)
    polyp_size: float = key(1.0, "Width of polyps as a multiple of the usual width.", above=0, at_most=2)
    look: str = key(
        PHANTOM_LOOKS[0],
        "Endoscope: white-light, or narrow-band (other colours, another mask, a narrower view).",
        choices=PHANTOM_LOOKS,
    )
    folder: str = key("runs/phantom-clips", "Folder for the rendered videos.", resume=FREE, output=True)


@dataclass
class VaeConfig:
    """Stage 1's model: a base and its frequency compensation."""

    kind: str = key(
        "causal",
        "causal: CogVideoX's, trained by stage 1; per-frame: an AutoencoderKL (stabilityai/sd-vae-ft-mse), "
        "one latent per frame, used as it is; vq: a tokenizer of pictures, trained by stage 1, for train-ar.",
        choices=VAE_KINDS,
    )
    base: str = key(
        "THUDM/CogVideoX-2b",
        "Base VAE: a Hugging Face Hub name, a diffusers folder or a JSON config; for a tokenizer also "
        "endogen or phantom.",
    )
    weights: str | None = key(None, "Safetensors file for a base that is built from a JSON config.")
    quantize: bool = key(
        True,
        "Quantise a tokenizer's latents; false trains the same autoencoder without codes, to compare with.",
        stage=(STAGE_1,),
    )
    compensation: bool = key(True, "Add the frequency compensation modules to the base.")
    compensation_kind: str = key(
        "auto",
        "The decoder's compensation: causal, standard (zero-padded in time, as in the paper), or auto (the "
        "kind of the run that is resumed, else the default).",
        choices=("auto", *COMPENSATION_KINDS),
        stage=(STAGE_1,),
    )
    path: str | None = key(
        None,
        "VAE that stage 2 uses: a run of stage 1, a saved VAE, a base that diffusers saved, or the word base "
        "(vae.base with vae.weights as it is, without stage 1); null: the one that stage 1 of this run "
        "trained, or a per-frame base itself.",
        stage=GENERATORS,
    )


@dataclass
class ImagesConfig:
    """Joint training on images and video (§3.4)."""

    count: int = key(8, "Joint images per clip; 0 trains on video only.", at_least=0, at_most=4096)
    encoding: str = key(
        "packed",
        "How images are encoded: packed (one causal pass over groups) or single (one latent per image).",
        choices=("packed", "single"),
    )


@dataclass
class DenoiserConfig:
    """Stage 2's model."""

    preset: str = key("B", "Model size, or a baseline and its size.", choices=tuple(NAMED_PRESETS))
    mixing: str = key(
        "isolated",
        "Whether joint images exchange information with the clip (mixed) or never do (isolated).",
        choices=MIXINGS,
    )
    prediction: str = key(
        "noise", "Output of the last layer; the predicted noise follows from either.", choices=PREDICTIONS
    )
    backend: str = key(
        "auto",
        "Implementation of the scans; auto takes the fastest usable one, auto and triton also fuse the "
        "other steps of a block.",
        choices=("auto", *FASTEST_FIRST),
    )
    gradient_checkpointing: bool = key(
        False, "Recompute activations in the backward pass to save memory.", resume=FREE
    )
    weights: str | None = key(
        None, "Trained model (run, folder or Hub name) whose denoiser weights this one starts from."
    )
    heads: int | None = key(
        None,
        "Heads of the local attention; null: the preset's 8 (tiny: 6); 1: as the authors' code, one as wide "
        "as the model.",
        at_least=1,
        at_most=1024,
    )
    spatial: str = key(
        "mamba",
        "What takes in a frame's tokens: the scans of Eq. 8-9, or self-attention of as many parameters.",
        choices=SWITCHES["spatial"],
    )
    temporal: str = key(
        "mamba",
        "What takes in a token's frames: the scan of Eq. 10, self-attention of as many parameters, none.",
        choices=SWITCHES["temporal"],
    )
    local_attention: bool = key(True, "Have the local attention of Eq. 6-7 in every block.")
    scan: str = key(
        "spiral",
        "Order of the spatial scans (Eq. 8): spiral, line by line (raster), or every second line backwards "
        "(snake).",
        choices=SWITCHES["scan"],
    )
    axes: str = key(
        "both", "Axes of the spatial scans: both, rows (height), columns (width).", choices=SWITCHES["axes"]
    )
    directions: str = key(
        "both", "Directions of the spatial scans: both, summed, or forward.", choices=SWITCHES["directions"]
    )
    fusion: str = key(
        "gate", "How both axes are fused: by the gates of Eq. 9, or their mean.", choices=SWITCHES["fusion"]
    )
    overrides: dict[str, Any] = key({}, "Settings of the preset to replace, such as {patch: 1}.")


@dataclass
class FlowConfig:
    """Optical flow of the alignment (§3.2)."""

    estimator: str = key(
        "raft_large",
        "Optical-flow estimator; dis needs no weights, exact is the phantom's ground truth.",
        choices=ESTIMATORS,
    )
    weights: str | None = key(None, "Local file of RAFT's weights; null: torchvision's download.")


@dataclass
class DinoConfig:
    """The self-supervised image model that encodes the optical flow (§3.2)."""

    model: str = key(
        "vit_base_patch8_224.dino", "A ViT: its name in timm, or a JSON file that describes one."
    )
    weights: str = key(
        "hub", "Weights: hub (download), a local file, or random (untrained: for the phantom and tests)."
    )


@dataclass
class AlignmentConfig:
    """Alignment of the denoiser's features with the optical flow (Eq. 14-15)."""

    kind: str = key(
        "flow",
        "Prior: flow (DINO on optical flow, the paper's) or image (DINO on the frames, Endora's).",
        choices=PRIOR_KINDS,
    )
    weight: float = key(
        0.01, "Factor α of the alignment loss in Eq. 17 (Endora's: 0.5); 0 disables it.", at_least=0
    )
    image_source: str = key(
        "tokens",
        "What the image prior takes of DINO: tokens (Endora's code) or attention maps (its paper).",
        choices=IMAGE_SOURCES,
    )
    margin: float = key(0.01, "Margin of the hinge in Eq. 15.", at_least=0)
    correlation: str = key(
        "sample", "Whether Eq. 14 correlates per sample or over the whole batch.", choices=CORRELATIONS
    )
    averaging: str = key(
        "aligned",
        "How flow features become latent frames: by the frames a latent covers, or in equal groups.",
        choices=AVERAGINGS,
    )


@dataclass
class TrainingConfig:
    """Keys that all trainings have."""

    optimizer: str = key("adamw", "Optimiser, by its name in torch.optim.", choices=OPTIMIZERS)
    lr_decay: str = key(
        "none", "Learning-rate decay; cosine reaches zero at the last step.", choices=LR_DECAYS
    )
    warmup_steps: int = key(0, "Steps of linear learning-rate warm-up.", at_least=0)
    accumulation: int = key(1, "Micro-batches per optimiser step.", above=0)
    max_steps: int | None = key(
        None, "Optimiser steps to train; null: until the epochs end.", above=0, resume=FREE_TO_EXTEND
    )
    precision: str = key("no", "Mixed precision; fp16 needs a GPU.", choices=PRECISIONS)
    eval_every: int = key(500, "Steps between validations.", above=0, resume=FREE)
    eval_clips: int = key(8, "Held-out clips per validation.", above=0, resume=FREE)
    early_stop: int | None = key(
        None,
        "Evaluations without a better held-out loss after which training ends; null: never. Every evaluation "
        "is then saved, and the best one's checkpoint kept.",
        above=0,
        resume=FREE,
    )
    early_stop_gain: float = key(
        0.0,
        "Smallest decrease that is better, as a part of the best held-out loss.",
        at_least=0,
        below=1,
        resume=FREE,
    )
    save_every: int = key(500, "Steps between checkpoints.", above=0, resume=FREE)
    keep: int = key(3, "Newest checkpoints to keep.", above=0, resume=FREE)
    keep_every: int | None = key(
        None, "Also keep the checkpoints of every so many steps; null: none.", above=0, resume=FREE
    )
    log_every: int = key(10, "Steps between lines of the log.", above=0, resume=FREE)


@dataclass
class GeneratorTrainingConfig(TrainingConfig):
    """Keys that the trainings of generative models have."""

    clip_norm: float = key(1.0, "Gradient norm to clip to.", above=0)
    matmul_precision: str = key(
        "highest",
        "Precision of float32 products, as in torch.set_float32_matmul_precision: on a GPU high and medium "
        "allow TF32; on a CPU medium hands products to oneDNN, which multiplies in bf16 with AMX only.",
        choices=MATMUL_PRECISIONS,
        was="matmul",
    )
    label_dropout: float = key(
        0.1,
        "Part of the samples that is trained without its label, as classifier-free guidance needs.",
        at_least=0,
        at_most=1,
    )
    sample_every: int = key(1000, "Steps between contact sheets of samples.", above=0, resume=FREE)
    sample_videos: int = key(4, "Videos per contact sheet.", above=0, resume=FREE)


@dataclass
class VaeTrainingConfig(TrainingConfig):
    """Stage 1's optimisation (§3.3, §4.1)."""

    train: str = key(
        "compensation",
        "Parameters to train: the compensation modules, the whole decoder (the latents stay), or all.",
        choices=("compensation", "decoder", "all"),
    )
    crop: int | None = key(
        None,
        "Side in pixels of random square crops of the clips to train on; null: whole frames.",
        above=0,
        at_most=MAX_SIDE_PX,
    )
    lr: float = key(2e-7, "Peak learning rate.", above=0)
    optimizer: str = key("adam", "Optimiser, by its name in torch.optim.", choices=OPTIMIZERS)
    betas: list[float] = betas_key([0.5, 0.9])
    batch: int = key(1, "Clips per optimiser step, over all processes.", above=0)
    default_epochs = 10
    epochs: int | None = epochs_key(default_epochs)
    clip_norm: float | None = key(None, "Gradient norm to clip to; null: no clipping.", above=0)
    l1: float = key(1.0, "Weight of the L1 reconstruction loss.", at_least=0)
    l2: float = key(0.0, "Weight of a tokenizer's L2 reconstruction loss.", at_least=0)
    commitment: float = key(
        0.25, "Weight of a tokenizer's commitment loss; that of its codebook's is 1.", at_least=0
    )
    revive_after: int = key(
        100, "Steps after which an unused code of a tokenizer is replaced by a latent.", above=0
    )
    lpips: float = key(0.1, "Weight of the LPIPS loss; 0 needs no LPIPS weights.", at_least=0)
    lpips_net: str = key("vgg", "Network of LPIPS.", choices=tuple(LPIPS_TRUNKS))
    lpips_trunk: str | None = key(None, "Local file of LPIPS's trunk; null: torchvision's download.")
    ffl: float = key(0.1, "Weight of the focal frequency loss.", at_least=0)
    kl: float = key(0.0, "Weight of the KL term.", at_least=0)
    coarse: float = key(
        0.0,
        "Weight of the loss between decoded halved latents and the halved video; the paper has none.",
        at_least=0,
    )
    sharpness: float = key(
        0.0,
        "Weight of the distance, beyond 0.2 decades, between the sharpness of clips and reconstructions; the "
        "paper has none.",
        at_least=0,
    )
    motion: float = key(
        0.0,
        "Weight of the distance, in decades, between the changes from frame to frame of clips and "
        "reconstructions; the paper has none.",
        at_least=0,
    )
    latent_std: float = key(1.0, "Standard deviation of scaled latents when train is all.", above=0)
    gradient_checkpointing: bool = key(
        False, "Recompute activations in the backward pass to save memory.", resume=FREE
    )
    eval_clips: int = key(4, "Held-out clips per validation.", above=0, resume=FREE)


@dataclass
class PhaseConfig:
    """One phase of stage 2: a learning rate and a global batch size until an epoch."""

    lr: float = key(1e-4, "Peak learning rate.", above=0)
    batch: int = key(2, "Clips per optimiser step, over all processes.", above=0)
    until_epoch: int | None = key(
        None, "Epoch at which the next phase starts; null: the last phase.", above=0
    )


@dataclass
class DenoiserTrainingConfig(GeneratorTrainingConfig):
    """Stage 2's optimisation (§4.1)."""

    phases: list[PhaseConfig] = key(
        [PhaseConfig(1e-3, 16, 2), PhaseConfig(1e-4, 2, None)],
        "Phases in order, each with lr, batch and until_epoch.",
    )
    betas: list[float] = betas_key([0.9, 0.999])
    weight_decay: float = key(
        0.01, "Weight decay: decoupled in adamw, in the other optimisers added to the gradient.", at_least=0
    )
    default_epochs = 1000
    epochs: int | None = epochs_key(default_epochs)
    clip_after_epoch: int = key(
        25, "Epochs after which gradients are clipped.", at_least=0, was="clip_from_epoch"
    )
    ema_decay: float = key(
        0.9999,
        "Decay of the weights' exponential moving average, which is sampled from.",
        at_least=0,
        below=1,
    )
    first_frame_prob: float = key(
        0.0, "Part of the samples whose first frames are given without noise.", at_least=0, at_most=1
    )
    given_frames: list[int] = key(
        [1], "Numbers of frames to give to those samples; one is drawn per sample.", above=0
    )
    loss_target: str = key(
        "noise",
        "Prediction target whose squared error is the first part of the loss.",
        choices=LOSS_TARGETS,
        was="error_of",
    )
    timestep_logit_mean: float | None = key(
        None,
        "Draw timesteps t of 1,000 whose log(t / (1000 - t)) is normal with this mean and standard deviation "
        "1; null: all timesteps equally often, as in the paper.",
        at_least=-5,
        at_most=5,
    )
    compile: bool = key(False, "Compile the denoiser's blocks by torch.compile; needs an NVIDIA or AMD GPU.")
    sample_steps: int = key(
        250, "DDIM steps of sampled videos.", above=0, at_most=DIFFUSION_STEPS, resume=FREE
    )


@dataclass
class EndoGenConfig:
    """EndoGen's transformer, an autoregressive baseline over codes; needs vae.kind: vq."""

    preset: str = key("B", "Model size.", choices=tuple(ENDOGEN_PRESETS))
    weights: str | None = key(
        None, "Trained model (run, folder or Hub name) whose transformer weights this one starts from."
    )
    dropout: float = key(0.1, "Dropout of the residual branches.", at_least=0, below=1)
    mask: float = key(
        0.3, "Largest rate of the semantic-aware token masking; 0 disables it.", at_least=0, at_most=1
    )
    mask_whole_groups: bool = key(
        False, "Mask groups of tokens as a whole (the paper's figure) instead of single entries (its code)."
    )


@dataclass
class ArTrainingConfig(GeneratorTrainingConfig):
    """EndoGen's optimisation."""

    lr: float = key(1e-4, "Peak learning rate.", above=0)
    batch: int = key(8, "Clips per optimiser step, over all processes.", above=0)
    betas: list[float] = betas_key([0.9, 0.95])
    weight_decay: float = key(0.05, "Weight decay of matrices; other parameters have none.", at_least=0)
    default_epochs = 300
    epochs: int | None = epochs_key(default_epochs)


@dataclass
class CacheConfig:
    """Caches on disk of what would otherwise be computed in every step; train-ar always keeps its codes."""

    latents: str = key(
        "off",
        "disk keeps the VAE's latents of every enumerated clip, mirrored and not.",
        choices=CACHE_PLACES,
        stage=(STAGE_2,),
    )
    prior: str = key(
        "off",
        "disk keeps the prior's features of the same clips; needs cache.latents: disk.",
        choices=CACHE_PLACES,
        stage=(STAGE_2,),
    )
    image_groups: int = key(
        256,
        "Groups of packed images that are drawn once for the cache.",
        above=0,
        at_most=1_000_000,
        stage=(STAGE_2,),
    )
    dir: str = key("runs/cache", "Folder that holds the caches.", resume=FREE, output=True)


@dataclass
class TrackingConfig:
    """Experiment trackers besides the run's own log."""

    trackers: list[str] = key(
        ["tensorboard"], "Trackers to report to; wandb and trackio are extras.", choices=TRACKERS, resume=FREE
    )
    project: str = key(
        "medsora", "Project name in the trackers: one folder name, without slashes.", resume=FREE
    )


@dataclass
class Config:
    """A whole run."""

    run: RunConfig = section(RunConfig)
    data: DataConfig = section(DataConfig)
    phantom: PhantomConfig = section(PhantomConfig)
    vae: VaeConfig = section(VaeConfig)
    images: ImagesConfig = section(ImagesConfig, STAGE_2)
    denoiser: DenoiserConfig = section(DenoiserConfig, STAGE_2)
    flow: FlowConfig = section(FlowConfig, STAGE_2)
    dino: DinoConfig = section(DinoConfig, STAGE_2)
    alignment: AlignmentConfig = section(AlignmentConfig, STAGE_2)
    train_vae: VaeTrainingConfig = section(VaeTrainingConfig, STAGE_1)
    train_dit: DenoiserTrainingConfig = section(DenoiserTrainingConfig, STAGE_2)
    endogen: EndoGenConfig = section(EndoGenConfig, STAGE_AR)
    train_ar: ArTrainingConfig = section(ArTrainingConfig, STAGE_AR)
    cache: CacheConfig = section(CacheConfig, *GENERATORS)
    tracking: TrackingConfig = section(TrackingConfig)

    @property
    def run_dir(self) -> Path:
        """The folder that holds both stages of this run."""
        return Path(self.run.dir) / self.run.name

    @property
    def vae_dir(self) -> Path:
        """Stage 1's run folder."""
        return self.run_dir / "vae"

    @property
    def dit_dir(self) -> Path:
        """Stage 2's run folder."""
        return self.run_dir / f"dit-{self.denoiser.preset}"

    @property
    def ar_dir(self) -> Path:
        """The run folder of EndoGen's training."""
        return self.run_dir / f"endogen-{self.endogen.preset}"

    def folder(self, stage: str) -> Path:
        """Return the run folder of a stage: `STAGE_1`, `STAGE_2` or `STAGE_AR`."""
        return {STAGE_1: self.vae_dir, STAGE_2: self.dit_dir, STAGE_AR: self.ar_dir}[stage]


@functools.cache
def all_keys() -> dict[str, Key]:
    """Return each key by its full name, `section.name`; a section's `stage` counts for all its keys."""
    keys = {}
    for outer in fields(Config):
        for inner in fields(outer.default_factory):
            rules = inner.metadata["key"]
            stage = rules.stage or outer.metadata["key"].stage
            keys[f"{outer.name}.{inner.name}"] = replace(rules, stage=stage)
    return keys


@functools.cache
def text_keys() -> dict[str, str]:
    """Return the keys that hold text: their names, former ones too, and the present name of each."""
    names = {}
    for outer in fields(Config):
        types = get_type_hints(outer.default_factory)
        for inner in fields(outer.default_factory):
            if types[inner.name] in (str, str | None):
                name = f"{outer.name}.{inner.name}"
                former = inner.metadata["key"].was
                names |= {name: name} | ({f"{outer.name}.{former}": name} if former else {})
    return names


def values_of(config: Any, prefix: str = "") -> Iterator[tuple[str, Key, Any]]:
    """Yield each value below `config` with its full name and `Key`; a list before its entries."""
    for each in fields(config):
        rules, value = each.metadata["key"], getattr(config, each.name)
        name = f"{prefix}{each.name}"
        if is_dataclass(value):
            yield from values_of(value, f"{name}.")
            continue
        yield name, rules, value
        for number, entry in enumerate(value if isinstance(value, list) else ()):
            if is_dataclass(entry):
                yield from values_of(entry, f"{name}[{number}].")
            else:
                yield f"{name}[{number}]", rules, entry
