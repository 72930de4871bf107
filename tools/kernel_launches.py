"""Launches of a step's kernels on a modelled GPU, recorded without one, for `tools.kernel_report`.

A denoiser without memory (PyTorch's meta device) takes the step; every operator and every Triton kernel is
noted instead of run.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from typing import Any, NamedTuple
from unittest import mock

import torch
from torch import Tensor
from torch._library.custom_ops import OPDEFS
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from torch.utils.flop_counter import flop_registry
from triton.runtime.jit import JITFunction

from benchmarks.support.wirings import CHANNELS, CLIP, IMAGES, SIDE, cast
from medsora import MedSora
from medsora.kernels.fused import backend as triton_backend
from medsora.kernels.fused import plan as fused_plan
from medsora.sampling.prepared import PreparedDenoiser

POINTERS = {torch.bfloat16: "*bf16", torch.float16: "*fp16", torch.float32: "*fp32", torch.int32: "*i32"}
NO_LAUNCH = ("empty", "detach", "_unsafe_view", "promote")
PRODUCTS = ("mm", "addmm", "bmm", "baddbmm")
# Kernels that read or write only the gate among the tokens' columns (gate, x, B, C, Δ).
GATE_COLUMNS = ("norm_forward", "norm_backward")
TOKENS = ("zxbcdt", "grad_zxbcdt")


class Chip(NamedTuple):
    """A GPU by its compute capability."""

    name: str
    plan: fused_plan.Gpu
    shared_bytes: int  # per multiprocessor
    warps: int  # per multiprocessor at most
    programs: int  # per multiprocessor at most


CHIPS = {
    90: Chip("H200", fused_plan.Gpu((9, 0), 132, 227 * 1024), 228 * 1024, 64, 32),
    80: Chip("A100", fused_plan.Gpu((8, 0), 108, 163 * 1024), 164 * 1024, 64, 32),
    89: Chip("L40S", fused_plan.Gpu((8, 9), 142, 99 * 1024), 100 * 1024, 48, 24),
}


@dataclass(frozen=True)
class Model:
    """Assumptions of the modelled times: an H200, kernels in a CUDA graph."""

    clock_hz: float = 1.755e9
    bytes_per_s: float = 0.75 * 4.8e12  # memory traffic, as large copies reach
    flops_per_s: Mapping[torch.dtype, float] = field(
        default_factory=lambda: {torch.bfloat16: 0.7 * 790e12, torch.float32: 0.7 * 67e12}
    )
    product_tiles: tuple[int, ...] = (64, 128)  # rows and columns of a product for one multiprocessor
    product_s: float = 0.3e-6  # per 64 terms of a product's sums, one after another
    start_s: float = 2e-6  # from first to last access, for a kernel with almost no work
    gap_s: float = 1e-6  # from a kernel's end to the next one's start
    cycles_between: int = 4  # between two instructions of a warp: few are ready earlier

    def __str__(self) -> str:
        return (
            f"{self.clock_hz / 1e9} GHz; memory at {self.bytes_per_s / 1e12:.1f} TB/s; products at "
            f"{self.flops_per_s[torch.bfloat16] / 1e12:.0f} TFLOP/s (bf16), "
            f"{self.flops_per_s[torch.float32] / 1e12:.0f} (float32) in whole rounds of the better of square "
            f"tiles of {self.product_tiles}, at least {self.product_s * 1e6} us for 64 terms; "
            f"{self.start_s * 1e6:.0f} us to start and end a kernel, {self.gap_s * 1e6:.0f} us between two; "
            f"a warp issues an instruction every {self.cycles_between} cycles, a scheduler one every cycle; "
            "programs run in whole rounds; what a kernel reads or writes moves once"
        )


@dataclass(frozen=True)
class Operator:
    """An operator of PyTorch that launches a kernel."""

    name: str
    tensors: tuple[Tensor, ...]
    flops: int

    @property
    def bytes(self) -> int:
        """Bytes moved."""
        return sum(map(_held_bytes, self.tensors))

    def seconds(self, model: Model) -> float:
        """Modelled time."""
        moved = self.bytes / model.bytes_per_s
        if self.name not in PRODUCTS:
            return model.start_s + moved
        out, processors = self.tensors[-1], CHIPS[90].plan.multiprocessors
        terms = self.flops / (2 * out.numel())
        rate = model.flops_per_s.get(out.dtype, model.flops_per_s[torch.float32]) / processors
        products = min(
            -(-math.prod(out.shape[:-2]) * math.prod(-(-n // side) for n in out.shape[-2:]) // processors)
            * (2 * side**2 * terms / rate)
            for side in model.product_tiles
        )
        return model.start_s + max(moved, products, terms / 64 * model.product_s)

    def floor_s(self) -> float:
        """Seconds that nothing on an H200 can beat."""
        return max(self.bytes / 4.8e12, self.flops / 790e12)


@dataclass(frozen=True)
class Launch:
    """A launch of a Triton kernel, not run."""

    kernel: JITFunction
    grid: tuple[int, ...]
    arguments: dict[str, Any]
    options: dict[str, Any]

    @property
    def name(self) -> str:
        """The kernel's name."""
        return self.kernel.__name__

    @property
    def bytes(self) -> int:
        """Bytes read and written at least."""
        total, seen = 0, set()  # a tensor also stands in for arguments that a kernel leaves alone
        for name, value in self.arguments.items():
            if isinstance(value, Tensor) and id(value) not in seen:
                seen.add(id(value))
                total += _held_bytes(self._columns(value) if name in TOKENS else value)
        return total

    def _columns(self, tokens: Tensor) -> Tensor:
        """Return the columns of `tokens` that the kernel reads or writes."""
        arguments = self.arguments
        if self.name in GATE_COLUMNS:
            return tokens[..., : arguments["DI"]]
        if self.name == "conv_forward":
            return tokens[..., arguments["HEADS"] * arguments["HEADDIM"] :]
        if self.name == "scan_forward":
            return tokens[..., : arguments["HEADS"] * arguments["HEADDIM"]]
        return tokens

    def signature(self) -> tuple[dict[str, str], dict[str, Any], list[str]]:
        """Types, constants, and the names of what divides by 16, as Triton specialises a launch."""
        types, constants, aligned = {}, {}, []
        for parameter in self.kernel.params:
            name, value = parameter.name, self.arguments[parameter.name]
            if parameter.is_constexpr:
                types[name], constants[name] = "constexpr", value
            elif isinstance(value, Tensor):
                types[name] = POINTERS[value.dtype]
                if value.storage_offset() * value.element_size() % 16 == 0:
                    aligned.append(name)
            elif isinstance(value, float):
                types[name] = "fp32"
            elif value == 1 and not parameter.do_not_specialize:
                types[name], constants[name] = "constexpr", 1
            else:
                types[name] = "i32" if value < 2**31 else "i64"
                if value % 16 == 0 and not parameter.do_not_specialize:
                    aligned.append(name)
        return types, constants, aligned

    def key(self) -> tuple[object, ...]:
        """What the compiled kernel depends on."""
        types, constants, aligned = self.signature()
        return self.name, *types.items(), *constants.items(), *aligned, *self.options.items()


class Recorder(TorchDispatchMode):
    """Notes the operators that launch a kernel, and our own operators by the launches they make."""

    def __init__(self) -> None:
        super().__init__()
        self.launches: list[Operator | Launch] = []

    def __torch_dispatch__(self, operator, types, args=(), kwargs=None):
        schema, kwargs = operator._schema, kwargs or {}
        if ours := OPDEFS.get(schema.name) if operator.namespace == "medsora" else None:
            with self, mock.patch.object(JITFunction, "run", self.launcher()):
                return ours._init_fn(*args, **kwargs)
        result = operator(*args, **kwargs)
        views = any(r.alias_info is not None and not r.alias_info.is_write for r in schema.returns)
        if not views and not any(word in schema.name for word in NO_LAUNCH):
            count = flop_registry.get(operator._overloadpacket)
            flops = count(*args, **kwargs, out_val=result) if count else 0
            tensors = tuple(t for t in tree_leaves((args, kwargs, result)) if isinstance(t, Tensor))
            self.launches.append(Operator(schema.name.removeprefix("aten::"), tensors, flops))
        return result

    def launcher(self) -> Callable[..., None]:
        """What takes the place of a kernel's launch."""

        def note(kernel: JITFunction, *args: object, grid: tuple[int, ...], warmup: bool, **named: object):
            arguments = dict(zip(kernel.arg_names, args, strict=False))
            arguments |= {name: named.pop(name) for name in kernel.arg_names if name in named}
            self.launches.append(Launch(kernel, grid, arguments, named))

        return note


@contextmanager
def _stand_in_for(gpu: fused_plan.Gpu) -> Iterator[None]:
    """Let the code of the kernels take tensors of the meta device for those of this GPU."""
    with ExitStack() as stack:
        for place, name, stand_in in (
            (fused_plan, "gpu", lambda device: gpu),
            (fused_plan, "declines_tensors", lambda device, dtype: None),
            (triton_backend, "unusable", lambda: None),
            (torch, "is_autocast_enabled", lambda device=None: False),
        ):
            stack.enter_context(mock.patch.object(place, name, stand_in))
        yield


def _held_bytes(tensor: Tensor) -> int:
    """Bytes of a tensor's elements, those of an expanded one once."""
    own = (n for n, stride in zip(tensor.shape, tensor.stride(), strict=True) if stride or n < 2)
    return math.prod(own) * tensor.element_size()


def denoiser(preset: str, dtype: torch.dtype, depth: int | None = None) -> MedSora:
    """A model of a preset without memory, in the dtypes that the benchmarks run it in."""
    with torch.device("meta"):
        settings = {"mixing": "mixed", "dropout": 0.0} | ({"depth": depth} if depth else {})
        return cast(MedSora.from_preset(preset, **settings), dtype)


def sampling_step(model: MedSora, batch: int, gpu: fused_plan.Gpu) -> list[Operator | Launch]:
    """Launches of a denoising step as the sampler makes it."""
    latents, t = _inputs(model, batch)

    def lookup(values: Tensor) -> Tensor:
        return torch.zeros(1000, dtype=torch.long, device="meta")

    with _stand_in_for(gpu), mock.patch("medsora.sampling.prepared._positions", lookup):
        step = PreparedDenoiser(model.eval(), (500,), num_images=IMAGES)
        with Recorder() as recorder:
            step(latents, t)
    return recorder.launches


def training_step(model: MedSora, batch: int, gpu: fused_plan.Gpu) -> list[Operator | Launch]:
    """Launches of a forward and backward pass through the denoiser."""
    latents, t = _inputs(model, batch)
    with _stand_in_for(gpu), Recorder() as recorder:
        out = model.train()(latents, t, num_images=IMAGES)
        torch.autograd.grad(out.eps.sum() + out.variance.sum(), list(model.parameters()))
    return recorder.launches


def _inputs(model: MedSora, batch: int) -> tuple[Tensor, Tensor]:
    shape = (batch, CLIP + IMAGES, CHANNELS, SIDE, SIDE)
    return torch.empty(shape, dtype=model.dtype, device="meta"), torch.empty(
        batch, dtype=torch.long, device="meta"
    )


STEPS = {"sampling": sampling_step, "training": training_step}
