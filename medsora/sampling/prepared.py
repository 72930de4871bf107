"""A denoiser made ready for sampling: what its timesteps decide is computed once, its launches are recorded.

All timesteps are known before sampling, so adaLN's outputs (a third of the parameters) become a table.
On a GPU a step is a few hundred launches that each take longer to issue than to run: they are recorded as a
CUDA graph with buffers of its own, once per shape of the latents, and replayed as one.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from medsora.denoiser.base import Denoiser, Modulation
from medsora.tables import collect_tables

log = logging.getLogger(__name__)

WARM_UPS = 3  # calls before recording: kernels are chosen, compiled and tuned in them


@dataclass
class _Recording:
    """A CUDA graph, the buffers that it reads and writes, and the cached tables that it reads.

    The graph holds bare addresses; the tables are held here, for the cache may evict them.
    """

    graph: torch.cuda.CUDAGraph
    inputs: tuple[Tensor, ...]
    eps: Tensor
    tables: list[Tensor | tuple[Tensor, ...]]


class PreparedDenoiser:
    """(z (B, n, C, h, w), t, perhaps labels) -> ε, for timesteps and labels known in advance.

    With `variance` (B, 2n, C, h, w): the variance follows ε along the frames, as diffusers' DDPM takes both.

    Timesteps are (B,) or (B, n), alike for the whole batch; labels as `MedSora.forward` takes them.

    Args:
        model: in evaluation mode. After its weights have changed, `tabulate` if this still `fits`.
        timesteps: all that will be used.
        num_images: how many of the last latents are joint images.
        record: whether to record CUDA graphs; on a CPU there are none.
        labels: all numbers that will be used; none: no label will be given.
    """

    @torch.no_grad()
    def __init__(
        self,
        model: Denoiser,
        timesteps: Sequence[int],
        *,
        num_images: int = 0,
        record: bool = True,
        labels: Sequence[int] = (),
        variance: bool = False,
    ) -> None:
        self.model, self.timesteps, self.num_images = model, tuple(timesteps), num_images
        self.labels, self.variance = tuple(labels), variance
        self.record = record and model.device.type == "cuda"
        self._state = _state(model)
        t = torch.tensor(self.timesteps, device=model.device)
        self._row = _positions(t)
        if labels:
            self._column = _positions(torch.tensor(self.labels, device=model.device))
        self._table, self._widths = self._modulation()
        self._cannot_record = False
        self._recordings: dict[tuple[torch.Size, ...], _Recording] = {}

    @torch.inference_mode()  # the buffers may have been made in that mode
    def tabulate(self) -> None:
        """Fill adaLN's table from the present weights, in the buffers that recordings read.

        A digest of these weights, the only sign that every way of changing them leaves, would read them as
        well. For a clip of 256 tokens the table costs about 0.2 % of the steps.
        """
        self._table.copy_(self._modulation()[0])

    def _modulation(self) -> tuple[Tensor, list[int]]:
        """Return a table for one lookup a step: a row per timestep, or per timestep and label.

        (T·labels, depth·9·d + 2·d), and the widths of its parts, all blocks and the last layer.
        """
        t = torch.tensor(self.timesteps, device=self.model.device)
        if self.labels:
            labels = torch.tensor(self.labels, device=t.device).expand(len(t), -1)
            table = self.model.modulation(t[:, None].expand(-1, len(self.labels)), labels)
        else:
            table = self.model.modulation(t)
        parts = [part.flatten(0, 1) for part in (*table.blocks, table.final)]
        return torch.cat(parts, dim=-1), [part.shape[-1] for part in parts]

    def fits(
        self,
        model: Denoiser,
        timesteps: Sequence[int],
        num_images: int,
        record: bool,
        labels: Sequence[int] = (),
        variance: bool = False,
    ) -> bool:
        """Whether this was made for the same timesteps, images, labels and recording.

        And for weights at the same addresses, whatever their values.
        """
        return (
            self.model is model
            and self.variance == variance
            and (self.timesteps, self.num_images) == (tuple(timesteps), num_images)
            and self.labels == tuple(labels)
            and self.record == (record and model.device.type == "cuda")
            and self._state == _state(model)
        )

    @torch.no_grad()
    def __call__(self, z: Tensor, t: Tensor, labels: Tensor | None = None) -> Tensor:
        """Return ε; nothing waits for the device."""
        inputs = (z, t) if labels is None else (z, t, labels)
        if not self.record or self._cannot_record:
            return self._denoise(*inputs)
        recording = self._recordings.get(_shapes(inputs)) or self._record(*inputs)
        if recording is None:
            return self._denoise(*inputs)
        for buffer, given in zip(recording.inputs, inputs, strict=True):
            buffer.copy_(given)
        recording.graph.replay()
        return recording.eps.clone()

    def _denoise(self, z: Tensor, t: Tensor, labels: Tensor | None = None) -> Tensor:
        row = _per_latent(self._row[t[:1]])
        if labels is not None:
            row = row * len(self.labels) + _per_latent(self._column[labels])
        *blocks, final = self._table[row].split(self._widths, dim=-1)
        modulation = Modulation(blocks, final)
        out = self.model(z, t, num_images=self.num_images, modulation=modulation, with_features=False)
        return torch.cat((out.eps, out.variance), dim=1) if self.variance else out.eps

    def _record(self, *inputs: Tensor) -> _Recording | None:
        """Record a step for inputs of these shapes; None, with a warning, if it cannot be recorded."""
        inputs = tuple(given.clone() for given in inputs)
        with torch.cuda.device(self.model.device):  # streams belong to the current one
            current, beside = torch.cuda.current_stream(), torch.cuda.Stream()
            beside.wait_stream(current)
            with torch.cuda.stream(beside):
                for _ in range(WARM_UPS):
                    self._denoise(*inputs)
            current.wait_stream(beside)
            graph = torch.cuda.CUDAGraph()
            try:
                # This thread only: a loader's may pin memory meanwhile, which would spoil the recording.
                own = torch.cuda.graph(graph, stream=beside, capture_error_mode="thread_local")
                with own, collect_tables() as tables:
                    eps = self._denoise(*inputs)
            except RuntimeError as error:
                torch.cuda.set_stream(current)  # a capture whose end fails leaves its own stream current
                log.warning("sampling without a CUDA graph: %s", str(error).splitlines()[0])
                self._cannot_record = True
                return None
        self._recordings[_shapes(inputs)] = _Recording(graph, inputs, eps, tables)
        return self._recordings[_shapes(inputs)]


def _positions(values: Tensor) -> Tensor:
    """Index of each of `values` in the list, looked up by the value itself."""
    positions = torch.zeros(int(values.max()) + 1, dtype=torch.long, device=values.device)
    positions[values] = torch.arange(len(values), device=values.device)
    return positions


def _per_latent(rows: Tensor) -> Tensor:
    return rows if rows.ndim == 2 else rows[:, None]


def _shapes(inputs: Sequence[Tensor]) -> tuple[torch.Size, ...]:
    return tuple(given.shape for given in inputs)


def _state(model: Denoiser) -> list[tuple[object, ...]]:
    """Properties of the weights that a recording depends on: addresses and layout, not values."""
    return [(p.data_ptr(), p.dtype, p.shape, p.stride()) for p in model.parameters()]
