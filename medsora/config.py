"""The dataclasses that one YAML file becomes: every key of a run, with its default and what it means.

Every default is the paper's value (§4.1, Table 1, and SPEC where the paper is silent) but for `data.crop`,
which the corpora's configs set back. Else they override only what their data demand, and `phantom.yaml` what
a laptop CPU demands.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any


@dataclass
class RunConfig:
    """Where a run lives: stage 1 in `DIR/NAME/vae`, stage 2 in `DIR/NAME/dit-PRESET`."""

    name: str = "run"
    dir: str = "runs"
    seed: int = 0


@dataclass
class PhantomConfig:
    """The embedded default data, rendered once into `folder` when `data.root` is null."""

    videos: int = 96
    frames: int = 33
    seed: int = 0
    polyp_size: float = 1.0  # width of polyps, times the usual; at most 2
    folder: str = "runs/phantom-clips"


@dataclass
class DataConfig:
    """What a clip is. Null `root` means the phantom."""

    root: str | None = None
    frames: int = 16  # F; one more frame is read for the optical flow of stage 2
    size: Any = 128  # pixels: one number for squares, or [height, width]
    interval: int = 3  # every third frame
    clip_stride: int | None = None  # source frames between enumerated windows; null: one clip's span
    crop: Any = "auto"  # cut off first: auto (black borders) | none | [top, bottom, left, right] as parts
    flip: bool = True
    holdout: float = 0.1  # part of the videos that is never trained on
    split_csv: str | None = None
    labels: str = (
        "none"  # none | folders (a video's folder is its label) | a CSV with the columns file, label
    )
    balance: bool = False  # stage 2 sees every label equally often, whatever the folder holds
    workers: int = 2

    @property
    def height_width(self) -> tuple[int, int]:
        """The clip's size in pixels, (H, W)."""
        return (self.size, self.size) if isinstance(self.size, int) else tuple(self.size)


@dataclass
class VaeConfig:
    """Stage 1's model: a base by hub name, diffusers folder or JSON config, and its compensation."""

    base: str = "THUDM/CogVideoX-2b"
    weights: str | None = None  # safetensors for a base that is built from a JSON config
    compensation: bool = True
    path: str | None = None  # the VAE that stage 2 uses; null: stage 1's of the same run


@dataclass
class ImagesConfig:
    """Joint image and video training (§3.4)."""

    count: int = 8
    encoding: str = "packed"  # packed: one causal pass over all | single: one latent per image


@dataclass
class DenoiserConfig:
    """Stage 2's model."""

    preset: str = "B"
    mixing: str = "isolated"  # isolated | mixed
    prediction: str = "noise"  # noise | velocity: what the last layer gives (ε follows from either)
    backend: str = (
        "auto"  # scans: auto | reference | torch | triton | mamba_ssm; auto, triton: fused steps, too
    )
    gradient_checkpointing: bool = False
    weights: str | None = (
        None  # a trained model (run, folder or hub name) whose denoiser this one starts from
    )
    overrides: dict[str, Any] = field(default_factory=dict)


@dataclass
class FlowConfig:
    """Optical flow of the alignment (§3.2)."""

    estimator: str = "raft_large"  # raft_large | raft_small | dis | exact (the phantom's own)
    weights: str | None = None  # local file; null: torchvision's download


@dataclass
class DinoConfig:
    """The self-supervised image model that reads flow images (§3.2)."""

    model: str = "vit_base_patch8_224.dino"
    weights: str = "hub"  # hub | a local file | random (untrained: for the phantom and tests only)


@dataclass
class AlignmentConfig:
    """Eq. 14-15."""

    weight: float = 0.01  # alpha; 0 leaves the alignment out
    margin: float = 0.01
    correlation: str = "sample"  # sample | batch
    averaging: str = "aligned"  # aligned | uniform


@dataclass
class VaeTrainingConfig:
    """Stage 1's optimisation (§3.3, §4.1)."""

    train: str = "compensation"  # compensation | all
    lr: float = 2e-7
    betas: list[float] = field(default_factory=lambda: [0.5, 0.9])
    lr_decay: str = "none"  # none | cosine (to zero at the last step)
    warmup_steps: int = 0
    batch: int = 1  # clips per optimiser step, over all processes
    accumulation: int = 1
    epochs: int = 10
    max_steps: int | None = None
    clip_norm: float | None = None
    l1: float = 1.0
    lpips: float = 0.1
    lpips_net: str = "vgg"
    lpips_trunk: str | None = None  # local file of the trunk; null: torchvision's download
    ffl: float = 0.1
    kl: float = 0.0
    coarse: float = 0.0  # weight of halved latents, decoded, against the halved video; the paper has none
    latent_std: float = 1.0  # train: all gives its scaled latents this standard deviation
    precision: str = "no"  # no | bf16 | fp16
    gradient_checkpointing: bool = False
    eval_every: int = 500
    eval_clips: int = 4
    save_every: int = 500
    keep: int = 3
    keep_every: int | None = None
    log_every: int = 10


@dataclass
class PhaseConfig:
    """One phase of stage 2: a learning rate and a global batch size until an epoch (null: to the end)."""

    lr: float = 1e-4
    batch: int = 2
    until_epoch: int | None = None


@dataclass
class DitTrainingConfig:
    """Stage 2's optimisation (§4.1)."""

    phases: list[PhaseConfig] = field(
        default_factory=lambda: [PhaseConfig(1e-3, 16, 2), PhaseConfig(1e-4, 2, None)]
    )
    betas: list[float] = field(default_factory=lambda: [0.9, 0.999])
    weight_decay: float = 0.01
    lr_decay: str = "none"  # none | cosine (to zero at the last step)
    warmup_steps: int = 0
    accumulation: int = 1
    epochs: int = 1000
    max_steps: int | None = None
    clip_norm: float = 1.0
    clip_from_epoch: int = 25
    ema_decay: float = 0.9999
    precision: str = "no"  # no | bf16 | fp16
    label_dropout: float = 0.1  # part of the samples that are trained without their label (guidance needs it)
    first_frame_prob: float = 0.0  # part of the samples whose first frames are given, without noise
    given_frames: list[int] = field(default_factory=lambda: [1])  # how many are given then, drawn from these
    error_of: str = "noise"  # noise | velocity | data: whose squared error is the loss's first part
    matmul: str = "highest"  # highest | high | medium: how exact float32 products are
    sample_every: int = 1000
    sample_videos: int = 4
    sample_steps: int = 250
    eval_every: int = 500
    eval_clips: int = 8
    save_every: int = 500
    keep: int = 3
    keep_every: int | None = None
    log_every: int = 10


@dataclass
class CacheConfig:
    """What is computed once and kept on disk instead of in every step."""

    latents: str = "off"  # off | disk: the VAE's moments of every enumerated window, flipped and not
    prior: str = "off"  # off | disk: the flow prior's features of the same clips
    image_groups: int = 256  # packed images: how many groups are drawn once for the cache
    dir: str = "runs/cache"


@dataclass
class TrackingConfig:
    """Where curves go besides the run's own log."""

    trackers: list[str] = field(default_factory=lambda: ["tensorboard"])
    project: str = "medsora"


@dataclass
class Config:
    """A whole run."""

    run: RunConfig = field(default_factory=RunConfig)
    data: DataConfig = field(default_factory=DataConfig)
    phantom: PhantomConfig = field(default_factory=PhantomConfig)
    vae: VaeConfig = field(default_factory=VaeConfig)
    images: ImagesConfig = field(default_factory=ImagesConfig)
    denoiser: DenoiserConfig = field(default_factory=DenoiserConfig)
    flow: FlowConfig = field(default_factory=FlowConfig)
    dino: DinoConfig = field(default_factory=DinoConfig)
    alignment: AlignmentConfig = field(default_factory=AlignmentConfig)
    train_vae: VaeTrainingConfig = field(default_factory=VaeTrainingConfig)
    train_dit: DitTrainingConfig = field(default_factory=DitTrainingConfig)
    cache: CacheConfig = field(default_factory=CacheConfig)
    tracking: TrackingConfig = field(default_factory=TrackingConfig)

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
