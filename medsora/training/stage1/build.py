"""Everything that stage 1 needs, built and checked before its first step."""

from __future__ import annotations

from pathlib import Path

from medsora.checkout import command_name
from medsora.config.schema import STAGE_1, Config
from medsora.errors import BadInput
from medsora.saved.find import find_base
from medsora.saved.optimizer import build_optimizer
from medsora.training.accelerator import make_accelerator
from medsora.training.open_clips import clip_spec, open_clips, open_run
from medsora.training.run.folder import with_compensation_kind
from medsora.training.stage1.crops import check_crop
from medsora.training.stage1.stage import VaeStage
from medsora.training.stage1.tokenizer import TokenizerStage
from medsora.vae import FrequencyCompensatedVAE, VQTokenizer
from medsora.vae.losses import TokenizerLoss, VaeLoss


def build_vae_stage(config: Config) -> VaeStage:
    """Build model, data, loss and optimiser; raises `ValueError` or `OSError` for invalid input."""
    config, settings = with_compensation_kind(config), config.train_vae
    accelerator = make_accelerator(config, STAGE_1)
    vae = build_vae(config)
    vae.check_video_shape(config.data.frames, *config.data.height_width)
    check_crop(config, vae)
    loss = build_loss(config).to(accelerator.device)
    clips, held_out = open_clips(config, accelerator, clip_spec(config), config.vae_dir)
    parameters = vae.trainable_parameters(settings.train)
    optimizer = build_optimizer(settings.optimizer, parameters, lr=settings.lr, betas=settings.betas)
    run, schedule = open_run(config, STAGE_1, accelerator, clips)
    if settings.lpips == 0:
        run.notify("LPIPS is left out of the loss (train_vae.lpips is 0).")
    if note := unused_path_note(config):
        run.notify(note)
    kind = TokenizerStage if config.vae.kind == "vq" else VaeStage
    return kind(config, accelerator, run, clips, held_out, vae, loss, optimizer, schedule)


def build_vae(config: Config) -> FrequencyCompensatedVAE | VQTokenizer:
    """Return the VAE that the config starts from; raises `ValueError` or `OSError` as `from_base` does."""
    if config.vae.kind == "per-frame":
        raise BadInput(
            f"vae.kind is {config.vae.kind}, which stage 1 does not train: run {command_name('train-dit')}."
        )
    kind = VQTokenizer if config.vae.kind == "vq" else FrequencyCompensatedVAE
    base, weights = find_base(config, kind.base_class)
    if kind is VQTokenizer:
        vae = VQTokenizer.from_base(base, weights, config.vae.quantize)
    else:
        vae = FrequencyCompensatedVAE.from_base(
            base,
            compensation=config.vae.compensation,
            compensation_kind=config.vae.compensation_kind,
            weights=weights,
        )
    if config.train_vae.gradient_checkpointing:
        vae.enable_gradient_checkpointing()
    return vae


def unused_path_note(config: Config) -> str | None:
    """Return the sentence that stage 1 leaves `vae.path` alone; None if that names no other VAE."""
    own = (config.vae_dir.parent, config.vae_dir, config.vae_dir / "final")
    if config.vae.path is None or Path(config.vae.path).resolve() in [path.resolve() for path in own]:
        return None
    return (
        f"vae.path is {config.vae.path}: the next training uses that instead of what is trained here, "
        "which starts from vae.base; leave vae.path out to use this one."
    )


def build_loss(config: Config) -> VaeLoss:
    """Return the loss (Eq. 16), or that of a tokenizer, with the config's weights of its terms."""
    names, kind = ["l1", "lpips", "ffl", "lpips_net", "lpips_trunk"], VaeLoss
    if config.vae.kind == "vq":
        names, kind = [*names, "l2", "commitment"], TokenizerLoss
    else:
        names += ["kl", "coarse", "sharpness", "motion"]
    return kind(**{name: getattr(config.train_vae, name) for name in names})
