"""Estimate the memory that training needs, without allocating it.

The code of a step itself runs on tensors without content (PyTorch's `FakeTensorMode`), and every storage that
an operation allocates or frees is counted: so sizes, precision, gradient checkpointing and whatever a model
does are accounted for. What a single operation needs inside itself is not seen; the slack includes it.
"""

from __future__ import annotations

import functools
import weakref
from collections.abc import Callable, Iterable, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, fields
from inspect import signature
from typing import TYPE_CHECKING, Any, NamedTuple, TypeVar

import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensor, FakeTensorMode
from torch.func import functional_call
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_map_only
from torch.utils.flop_counter import FlopCounterMode

from medsora.config.presets import NAMED_PRESETS
from medsora.config.schema import Config
from medsora.denoiser.base import Denoiser
from medsora.diffusion import GaussianDiffusion
from medsora.flow_prior import needed
from medsora.flow_prior.choices import RAFT_VARIANTS
from medsora.saved.classes import denoiser_class
from medsora.saved.optimizer import moments
from medsora.saved.pipeline import DTYPES
from medsora.training.cache.prior import has_image_targets
from medsora.training.joint_images import image_latents, image_moments
from medsora.training.randomness import timestep_for
from medsora.training.stage2.inputs import Stage2Inputs
from medsora.training.stage2.loss import DenoisingLoss
from medsora.vae import FrequencyCompensatedVAE, VideoVAE, VQTokenizer
from medsora.vae.losses import VaeLoss
from medsora.vae.shapes import FRAMES_PER_CHUNK
from medsora.vae.video_vae import VIDEOS_AT_ONCE

if TYPE_CHECKING:
    from medsora.flow_prior import FlowPrior  # needs timm, which `new` does without

Mode = TypeVar("Mode")

SLACK = 0.6  # share of transient memory; measured on a CPU, where freed memory is kept (`runtime.malloc`)
MIN_SLACK_BYTES = 80 * 2**20  # operations' own memory included; measured at 32 pixels and batch 2
COPIES = 3  # copies of a batch's pixels: the items, the batch, the batch before


@dataclass(frozen=True, kw_only=True)
class MemoryEstimate:
    """Bytes of one process. Step, encoding, prior and evaluation take turns: only the largest counts.

    weights, average, optimiser: trained weights, their EMA and the optimiser's state.
    frozen: the weights of models that are only used.
    step: a training step's activations and gradients at their most.
    encoding, prior: turning clips into latents, and into alignment targets.
    evaluating: evaluation and sampling, with the weights that the average displaces.
    clips: a batch's pixels as they are read, joined and replaced by the next; always beside the processor.
    """

    weights: int
    average: int = 0
    optimiser: int
    frozen: int
    step: int
    encoding: int = 0
    prior: int = 0
    evaluating: int
    clips: int

    @property
    def tensors(self) -> int:
        """The most bytes of models' and operations' tensors that lie in memory at once."""
        lasting = self.weights + self.average + self.optimiser + self.frozen
        return lasting + max(self.step, self.encoding, self.prior, self.evaluating)

    @property
    def _slack(self) -> int:
        """Memory that allocators keep in gaps between tensors, and operations need inside themselves."""
        passing = max(self.step, self.encoding, self.prior, self.evaluating)
        return max(int(SLACK * passing), MIN_SLACK_BYTES)

    @property
    def total(self) -> int:
        """Memory of a process beyond its libraries."""
        return self.tensors + self._slack + self.clips

    def lines(self) -> list[tuple[str, int]]:
        """Return (name, bytes) for a table, the total last."""
        parts = [(field.name, getattr(self, field.name)) for field in fields(self)]
        return [*parts, ("allocator's slack", self._slack), ("total", self.total)]


class Stage2Work(NamedTuple):
    """The work of stage 2 for `batch` clips of a micro-batch: its loss, and the steps before and after it."""

    train: Callable[[], Tensor]
    encode: Callable[[], None]
    targets: Callable[[], None]  # for one clip
    evaluate: Callable[[], None]


def estimate_denoiser(
    config: Config, model: Denoiser, vae: VideoVAE, prior: FlowPrior | None, batch: int
) -> MemoryEstimate:
    """Estimate stage 2 for `batch` clips in one process's micro-batch; the models lie on the CPU.

    An alignment whose every sample needs targets is assumed: sooner or later a step has one.
    """
    trained, cached = size_bytes(model), config.cache.latents == "disk"
    work = _denoiser_work(config, model, vae, prior, batch)
    pictures = config.data.frames + 1 + config.images.count
    return MemoryEstimate(
        weights=trained,
        average=trained,
        optimiser=moments(config.train_dit.optimizer) * trained,
        frozen=size_bytes(vae) + (size_bytes(prior) if prior is not None else 0),
        step=peak_bytes([model], work.train),
        encoding=peak_bytes([vae], work.encode, gradients=False),
        prior=peak_bytes([prior], work.targets, gradients=False) if prior is not None else 0,
        evaluating=trained + peak_bytes([model, vae], work.evaluate, gradients=False),
        clips=0 if cached else COPIES * batch * _pixel_bytes(config, pictures),
    )


def step_bytes(
    config: Config, model: Denoiser, vae: VideoVAE, prior: FlowPrior | None, batches: Sequence[int]
) -> dict[int, int]:
    """Return the GPU memory in bytes of a step of each batch size, with slack, without evaluations."""
    lasting = (2 + moments(config.train_dit.optimizer)) * size_bytes(model) + size_bytes(vae)
    of_four = _denoiser_work(config, model, vae, prior, VIDEOS_AT_ONCE)
    passing = [peak_bytes([vae], of_four.encode, gradients=False)]
    if prior is not None:
        lasting += size_bytes(prior)
        passing.append(peak_bytes([prior], of_four.targets, gradients=False))
    steps = {
        batch: peak_bytes([model], _denoiser_work(config, model, vae, prior, batch).train)
        for batch in batches
    }
    return {batch: lasting + int((1 + SLACK) * max(step, *passing)) for batch, step in steps.items()}


def denoiser_flops(config: Config, model: Denoiser, vae: VideoVAE, prior: FlowPrior | None) -> float:
    """Return the FLOPs of training on one clip, 2 per multiply-add, of products, convolutions and attention.

    The prior counts as its mean over timesteps, most of which need no targets. Cached values cost nothing.
    """
    work = _denoiser_work(config, model, vae, prior, 1)
    flops = float(count_flops([model], work.train))
    if config.cache.latents != "disk":
        flops += count_flops([vae], work.encode, gradients=False)
    if prior is not None and config.cache.prior != "disk":
        alignment, steps = config.alignment, GaussianDiffusion().steps
        drawn = [timestep_for(steps, 0, n, config.train_dit.timestep_logit_mean) for n in range(steps)]
        skips = alignment.kind == "flow" and alignment.correlation == "sample"
        share = needed(torch.tensor(drawn), alignment.margin).double().mean() if skips else 1
        flops += float(share) * count_flops([prior], work.targets, gradients=False)
    return flops


def _denoiser_work(
    config: Config, model: Denoiser, vae: VideoVAE, prior: FlowPrior | None, batch: int
) -> Stage2Work:
    data, settings = config.data, config.train_dit
    clip, _, height, width = vae.latent_shape(data.frames, *data.height_width)
    images = image_latents(config, vae)
    grid = (clip, height // model.config.patch, width // model.config.patch)
    model.train()

    diffusion, classes = GaussianDiffusion(), model.config.classes
    inputs = Stage2Inputs(
        config, vae, diffusion, prior, None, torch.device("cpu"), grid, model.config.width, classes
    )
    criterion = DenoisingLoss(config, diffusion, lambda: autocast(settings.precision), model.adapter)

    def train() -> Tensor:
        moments = torch.empty(batch, clip + images, model.config.in_channels, height, width)
        numbers = torch.zeros(batch, dtype=torch.long)
        of_all = {"mean": moments, "logvar": moments, "sample": range(batch), "t": numbers, "needed": None}
        labels = {"label": numbers} if classes else {}
        given = {"given": numbers} if settings.first_frame_prob else {}
        noised, aligned = inputs.noised_latents(of_all | labels | given), None
        if prior is not None:
            joint = images * has_image_targets(config)
            of_layer = (batch, *prior.target_shape((clip + joint, *grid[1:]), model.config.width))
            aligned = prior.pair_with_blocks([torch.empty(of_layer) for _ in prior.distinct_layers])
        return criterion(model, noised, aligned).total

    def encode_clips(count: int) -> None:
        pixels = torch.empty(count, data.frames, 3, *data.height_width)
        vae.encode_moments(pixels)
        if config.images.count:
            pictures = pixels[:, :1].repeat(1, config.images.count, 1, 1, 1)
            image_moments(vae, pictures, config.images.encoding)

    def targets() -> None:
        video = torch.empty(1, data.frames + 1, 3, *data.height_width)
        flow = None
        if config.alignment.kind == "flow":
            flow = torch.empty(1, data.frames, 2, *data.height_width)
            if config.flow.estimator in RAFT_VARIANTS:
                flow = prior.estimator(video)  # `estimate_flow` would read the values
        prior.distinct_targets(video, flow, latent_frames=clip, grid=grid[1:], width=model.config.width)
        if has_image_targets(config):
            pictures = torch.empty(config.images.count, 3, *data.height_width)
            prior.picture_targets(pictures, images, grid[1:])

    def evaluate() -> None:
        encode_clips(settings.eval_clips)
        z = torch.empty(settings.eval_clips, clip + images, model.config.in_channels, height, width)
        model(z, torch.zeros(settings.eval_clips, dtype=torch.long), num_images=images)
        vae.decode(z[: settings.sample_videos, :clip])

    count = 2 if config.cache.latents == "disk" else batch
    return Stage2Work(train, lambda: encode_clips(count), targets, evaluate)


@functools.cache
def preset_bytes(
    preset: str,
    frames: int,
    side_px: int,
    image_latents: int = 2,
    vae: type[VideoVAE] = FrequencyCompensatedVAE,
) -> tuple[int, int]:
    """Return what a preset of the denoiser takes in training, and each clip of a step beyond that, in bytes.

    Weights, gradients, two moments and the average, in float32; activations without gradient checkpointing.
    Blocks are alike, or pairs of them, so the counts of one and of two give those of any depth.
    """
    side = side_px // vae.pixels_per_latent
    latents = vae.frames_to_latents(frames) + image_latents
    name, size = NAMED_PRESETS[preset]
    kind = denoiser_class(name)
    plain = {"backend": "torch"} if "backend" in signature(kind.__init__).parameters else {}

    def counted(depth: int) -> tuple[int, int]:
        with FakeTensorMode(allow_non_fake_inputs=True):
            model = kind.from_preset(size, depth=depth, **plain).train()

        def step(batch: int) -> Tensor:
            model.zero_grad(set_to_none=True)
            z = torch.empty(batch, latents, model.config.in_channels, side, side)
            out = model(z, torch.zeros(batch, dtype=torch.long), num_images=image_latents)
            return sum(part.square().mean() for part in (out.eps, out.variance, *out.features))

        one, two = (peak_bytes([model], functools.partial(step, batch)) for batch in (1, 2))
        return 5 * size_bytes(model), two - one

    with torch.device("meta"):
        alike = 2 // kind.from_preset(size, depth=2, **plain).num_features  # Endora's blocks alternate
    (state, clip), (state_of_two, clip_of_two) = counted(alike), counted(2 * alike)
    more = kind.presets[size]["depth"] // alike - 1
    return state + more * (state_of_two - state), clip + more * (clip_of_two - clip)


@functools.cache
def vae_bytes(side_px: int) -> tuple[int, int, int]:
    """Return the bytes of CogVideoX's weights, of a step of stage 1 per 8 frames, and of encoding.

    Stage 1 trains the compensation on one clip, without gradient checkpointing and LPIPS (an extra). Encoding
    is of `VIDEOS_AT_ONCE` clips, 8 frames after 8 others. Both are proportional to the pixels.
    """
    with FakeTensorMode(allow_non_fake_inputs=True):
        vae = FrequencyCompensatedVAE({}).train()
    vae.freeze_base()

    def train() -> Tensor:
        video = torch.empty(1, FRAMES_PER_CHUNK, 3, side_px, side_px)
        return (vae(video).reconstruction - video).abs().mean()

    def encode() -> None:
        vae.encode_moments(torch.empty(VIDEOS_AT_ONCE, 2 * FRAMES_PER_CHUNK, 3, side_px, side_px))

    return size_bytes(vae), peak_bytes([vae], train), peak_bytes([vae], encode, gradients=False)


def estimate_vae(
    config: Config, vae: FrequencyCompensatedVAE | VQTokenizer, loss: VaeLoss, batch: int
) -> MemoryEstimate:
    """Estimate stage 1 for `batch` clips in one process's micro-batch; `vae` has its trained part thawed."""
    settings, data = config.train_vae, config.data
    trained_size = data.height_width if settings.crop is None else (settings.crop, settings.crop)

    def train() -> Tensor:
        video = torch.empty(batch, data.frames, 3, *trained_size)
        with autocast(settings.precision):
            if isinstance(vae, VQTokenizer):
                return loss(vae(video), video).total
            out = vae(video, coarse=settings.coarse > 0)
            return loss(out.reconstruction, video, out.mean, out.logvar, out.coarse).total

    def evaluate() -> None:
        videos = torch.empty(settings.eval_clips, data.frames, 3, *data.height_width)
        kept = [vae.reconstruct(videos) for _ in range(2)]  # with the compensation and without
        for version in kept:
            (version - videos).square().mean()

    vae.train()
    trained = sum(parameter.nbytes for parameter in vae.parameters() if parameter.requires_grad)
    return MemoryEstimate(
        weights=trained,
        optimiser=moments(settings.optimizer) * trained,
        frozen=size_bytes(vae) - trained + size_bytes(loss),
        step=peak_bytes([vae, loss], train),
        evaluating=peak_bytes([vae], evaluate, gradients=False),
        clips=COPIES * batch * _pixel_bytes(config, data.frames),
    )


def size_bytes(model: nn.Module) -> int:
    """Return the bytes of a model's parameters and buffers."""
    return sum(tensor.nbytes for tensor in [*model.parameters(), *model.buffers()])


def peak_bytes(
    models: Sequence[nn.Module], work: Callable[[], Tensor | None], *, gradients: bool = True
) -> int:
    """Return the most bytes that `work` has alive at once, those of `models` themselves left out.

    `work` uses the models and makes its own inputs; if it returns a loss, its backward pass counts too.
    Models may have been made under a `FakeTensorMode`.
    """
    return _observed(models, work, gradients, LiveBytes).peak


def count_flops(
    models: Sequence[nn.Module], work: Callable[[], Tensor | None], *, gradients: bool = True
) -> int:
    """Return the FLOPs of `work`, see `peak_bytes`: 2 per multiply-add; elementwise work is not counted."""
    counter = _observed(models, work, gradients, lambda known: FlopCounterMode(display=False))
    return counter.get_total_flops()


def _observed(
    models: Sequence[nn.Module],
    work: Callable[[], Tensor | None],
    gradients: bool,
    observer: Callable[[Iterable[Tensor]], Mode],
) -> Mode:
    """Run `work` on tensors without content under `observer(weights)`, which is returned."""
    owner = _Work(models, work)
    tensors = dict([*owner.named_parameters(), *owner.named_buffers()])
    modes = [tensor.fake_mode for tensor in tensors.values() if isinstance(tensor, FakeTensor)]
    mode = modes[0] if modes else FakeTensorMode(allow_non_fake_inputs=True)
    with mode, torch.set_grad_enabled(gradients):
        hollow = {
            name: tensor if isinstance(tensor, FakeTensor) else mode.from_tensor(tensor)
            for name, tensor in tensors.items()
        }
        with observer(hollow.values()) as seen:
            loss = functional_call(owner, hollow, ())
            if loss is not None:
                loss.backward()
    return seen


class LiveBytes(TorchDispatchMode):
    """Counts the bytes of all storages that operations make while they live; `known` ones are left out."""

    def __init__(self, known: Iterable[Tensor]) -> None:
        super().__init__()
        self.now = self.peak = 0
        self._alive: dict[int, Any] = {_key(tensor): None for tensor in known}

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Run an operation and note what it made."""
        made = func(*args, **(kwargs or {}))
        tree_map_only(Tensor, self._note, made)
        return made

    def _note(self, tensor: Tensor) -> None:
        storage, key = tensor.untyped_storage(), _key(tensor)
        if key in self._alive:
            return
        size = storage.nbytes()

        def let_go(reference: weakref.ref) -> None:
            self.now -= size
            del self._alive[key]

        self._alive[key] = weakref.ref(storage, let_go)
        self.now += size
        self.peak = max(self.peak, self.now)


class _Work(nn.Module):
    """Models and their forward pass as one module, whose parameters can be replaced temporarily."""

    def __init__(self, models: Sequence[nn.Module], work: Callable[[], Tensor | None]) -> None:
        super().__init__()
        self.models, self.work = nn.ModuleList(models), work

    def forward(self) -> Tensor | None:
        return self.work()


def _pixel_bytes(config: Config, pictures: int) -> int:
    height, width = config.data.height_width
    return 4 * 3 * pictures * height * width


def _key(tensor: Tensor) -> int:
    return tensor.untyped_storage()._cdata


def autocast(precision: str) -> AbstractContextManager:
    """Return the context of a precision's products."""
    return torch.autocast("cpu", DTYPES[precision]) if precision in DTYPES else nullcontext()
