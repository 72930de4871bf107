"""Everything that stage 2 needs, built and checked before its first step."""

from __future__ import annotations

import logging
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from inspect import signature

from medsora.baselines.endora.image_prior import ImagePrior
from medsora.config.presets import NAMED_PRESETS
from medsora.config.schema import STAGE_2, Config, DenoiserConfig
from medsora.config.shipped import shipped_file
from medsora.config.switches import SWITCHES
from medsora.denoiser.base import Denoiser
from medsora.diffusion import GaussianDiffusion
from medsora.errors import BadInput
from medsora.flow_prior import DinoEncoder, FlowPrior
from medsora.runtime.digests import weights_digest
from medsora.sampling.compiled import compile_blocks
from medsora.saved.checkpoint import checkpoint_folders
from medsora.saved.classes import denoiser_class
from medsora.saved.find import find_model, trained_vae
from medsora.saved.limits import check_part
from medsora.saved.manifest import refuse_changed_part
from medsora.saved.optimizer import build_optimizer
from medsora.training.accelerator import check_compile, make_accelerator
from medsora.training.cache.latents import LatentCache
from medsora.training.cache.prior import PriorCache, prior_cache_bytes
from medsora.training.open_clips import denoiser_clip_spec, open_clips, open_run
from medsora.training.stage2.ema import Ema
from medsora.training.stage2.inputs import Stage2Inputs
from medsora.training.stage2.loss import DenoisingLoss
from medsora.training.stage2.samples import Stage2Samples
from medsora.training.stage2.stage import Stage2
from medsora.vae import VideoVAE
from medsora.vae.compensation import compensation_modules

# Settings that change what weights of the same shapes compute; OF_ATTENTION are compared after the shapes.
SAME_SHAPES, OF_ATTENTION = ("prediction", "layout", "mixing", *SWITCHES), ("heads", "window")


def kept_compensation_note(config: Config, vae: VideoVAE) -> str | None:
    """Return the sentence that `vae` keeps its compensation; None if that is as configured."""
    if config.vae.compensation or not any(compensation_modules(vae)):
        return None
    return (
        "vae.compensation is false, but the VAE was trained with a compensation, which stays; set vae.path "
        "to base, or to a VAE trained without."
    )


def build_denoiser_stage(config: Config) -> Stage2:
    """Build everything; raises `ValueError` or `OSError` for invalid input."""
    settings = config.train_dit
    accelerator = make_accelerator(config, STAGE_2)
    if settings.compile:
        check_compile()
    vae = trained_vae(config)
    vae.check_video_shape(config.data.frames, *config.data.height_width)
    clips, held_out = open_clips(config, accelerator, denoiser_clip_spec(config), config.dit_dir)
    labels = clips.labels.names
    classes = len(labels)
    model = build_denoiser(config, vae.latent_channels, classes)
    grid = token_grid(config, vae, model.config.patch)
    aligned = config.alignment.weight > 0
    prior = build_prior(config, model.num_features) if aligned else None
    add_adapter(model, prior)
    if not checkpoint_folders(config.dit_dir / "checkpoints"):  # a resumed run does without them
        start_from(model, config.denoiser.weights, labels)
    for part in (vae, model, prior):
        if part is not None:
            part.to(accelerator.device)
    run, schedule = open_run(config, STAGE_2, accelerator, clips)
    if note := kept_compensation_note(config, vae):
        run.notify(note)
    if prior is not None and prior.untrained:
        run.notify(
            f"the {config.alignment.kind} prior is untrained (dino.weights: random): the alignment loss "
            "carries no signal."
        )
    diffusion = GaussianDiffusion()
    latents = None
    if config.cache.latents == "disk":
        latents = LatentCache(config, clips, vae)
        latents.build(vae, accelerator)
    priors = None
    if prior is not None and config.cache.prior == "disk":
        priors = PriorCache(config, clips, prior, grid, model.config.width)
        most = prior_cache_bytes(config, len(clips), prior, grid, model.config.width, vae)
        run.notify(f"the cache of prior features may grow to {-(-most // 2**20):,} MiB.")
    if settings.compile:
        compile_blocks(model)
    given = settings.given_frames if settings.first_frame_prob else ()
    optimizer = build_optimizer(
        settings.optimizer,
        model.parameters(),
        lr=settings.phases[0].lr,
        betas=settings.betas,
        weight_decay=settings.weight_decay,
    )
    return Stage2(
        config=config,
        accelerator=accelerator,
        run=run,
        samples=Stage2Samples(
            config,
            clips,
            steps=diffusion.steps,
            given_latents=[vae.frames_to_latents(frames) for frames in given],
            latents=latents,
            priors=priors,
        ),
        held_out=Stage2Samples(config, held_out, steps=diffusion.steps, draw=False),
        model=model,
        vae=vae,
        decoder_digest=weights_digest(vae),
        inputs=Stage2Inputs(
            config, vae, diffusion, prior, priors, accelerator.device, grid, model.config.width, classes
        ),
        loss=DenoisingLoss(config, diffusion, accelerator.autocast, model.adapter),
        optimizer=optimizer,
        ema=Ema(model, settings.ema_decay),
        schedule=schedule,
    )


def start_from(model: Denoiser, trained: str | None, labels: Sequence[str] = ()) -> None:
    """Load the weights of another model into the denoiser, if one is named, to fine-tune it.

    `labels` are the names of this model's labels; rows of the embedding are matched by name.
    Raises `BadInput` if there is none, or it was built with other settings.
    """
    if trained is None:
        return
    folder = find_model(trained)
    settings, usual = check_part(folder.denoiser), signature(type(model).__init__).parameters
    refuse_changed_part(folder.denoiser)

    def require_same(keys: Sequence[str]) -> None:
        for key in keys:
            if key in usual and (trained_with := settings.get(key, usual[key].default)) != model.config[key]:
                raise BadInput(
                    f"{trained} was trained with {key} {trained_with}, but this denoiser has "
                    f"{model.config[key]}; take the same for both."
                )

    require_same(SAME_SHAPES)
    model.load_weights(folder.denoiser, (folder.geometry.get("labels", []), labels))
    require_same(OF_ATTENTION)


def token_grid(config: Config, vae: VideoVAE | type[VideoVAE], patch: int) -> tuple[int, int, int]:
    """Return a clip's tokens along frames, rows and columns; raises `BadInput` if patches do not fit."""
    height, width = config.data.height_width
    side = vae.pixels_per_latent * patch
    if height % side or width % side:
        raise BadInput(
            f"data.size is {height}x{width}, but patches of {patch} latents (denoiser.overrides) need sides "
            f"divisible by {side}."
        )
    return vae.frames_to_latents(config.data.frames), height // side, width // side


def add_adapter(model: Denoiser, prior: FlowPrior | ImagePrior | None) -> None:
    """Add the adapter that an image prior needs; it is trained with the denoiser."""
    if isinstance(prior, ImagePrior):
        model.add_adapter(prior.width)


def build_prior(config: Config, depth: int) -> FlowPrior | ImagePrior:
    """Return the prior that the config names, paired with the `depth` features of a denoiser."""
    encoder_log = logging.getLogger("medsora.flow_prior.dino")  # the run reports it itself
    with _kept_quiet(encoder_log, "is untrained"):
        if config.alignment.kind == "image":
            encoder = DinoEncoder(shipped_file(config.dino.model), shipped_file(config.dino.weights))
            return ImagePrior(encoder, depth, config.alignment.image_source)
        prior = FlowPrior.build(
            config.flow.estimator,
            shipped_file(config.dino.model),
            depth,
            flow_weights=config.flow.weights,
            dino_weights=shipped_file(config.dino.weights),
            averaging=config.alignment.averaging,
        )
    return prior.eval().requires_grad_(False)


@contextmanager
def _kept_quiet(logger: logging.Logger, sentence: str) -> Iterator[None]:
    """Suppress messages of `logger` that contain `sentence`, inside the context."""

    def is_another(record: logging.LogRecord) -> bool:
        return sentence not in record.getMessage()

    logger.addFilter(is_another)
    try:
        yield
    finally:
        logger.removeFilter(is_another)


def build_denoiser(config: Config, in_channels: int, classes: int = 0) -> Denoiser:
    """Return the denoiser of the config's preset for a VAE of `in_channels` and so many labels.

    Raises `BadInput` if the config's overrides do not fit.
    """
    name, size = NAMED_PRESETS[config.denoiser.preset]
    kind = denoiser_class(name)
    settings = {"in_channels": in_channels, "classes": classes, "prediction": config.denoiser.prediction}
    if config.denoiser.heads is not None:
        settings["heads"] = config.denoiser.heads
    usual, known = DenoiserConfig(), signature(kind.__init__).parameters
    for key in ("mixing", "backend", *SWITCHES):
        if key in known:
            settings[key] = getattr(config.denoiser, key)
        elif getattr(config.denoiser, key) != getattr(usual, key):
            preset = config.denoiser.preset
            raise BadInput(f"preset {preset} has no setting denoiser.{key}; leave it at its default.")
    settings |= config.denoiser.overrides
    try:
        model = kind.from_preset(size, **settings)
    except TypeError as error:
        raise BadInput(f"denoiser.overrides holds a value of the wrong type: {error}.") from error
    if model.config.in_channels != in_channels:
        raise BadInput(
            f"the denoiser works on {model.config.in_channels} latent channels (denoiser.overrides) but the "
            f"VAE has {in_channels}; leave denoiser.overrides.in_channels out."
        )
    if model.config.classes != classes:
        raise BadInput(
            f"the denoiser has {model.config.classes} classes (denoiser.overrides) but the clips have "
            f"{classes} labels; leave denoiser.overrides.classes out, data.labels decides."
        )
    if config.denoiser.gradient_checkpointing:
        model.enable_gradient_checkpointing()
    return model
