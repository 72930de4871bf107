"""A denoiser made ready for sampling: what its timesteps decide is computed once, its launches are recorded.

A sampler knows all its timesteps beforehand, so adaLN's outputs (a third of the parameters) become a table.
On a GPU a step is a few hundred launches that each take longer to ask for than to do: they are recorded as a
CUDA graph with buffers of its own, once per shape of the latents, and asked for as one.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from medsora.denoiser.model import MedSora, Modulation

log = logging.getLogger(__name__)

WARM_UPS = 3  # calls before recording: kernels are chosen, compiled and tuned in them


@dataclass
class _Recording:
    """A CUDA graph, and the buffers that it reads and writes."""

    graph: torch.cuda.CUDAGraph
    z: Tensor
    t: Tensor
    eps: Tensor


class PreparedDenoiser:
    """(z (B, n, C, h, w), t (B,)) -> ε, for timesteps known beforehand and alike for the whole batch.

    Args:
        model: in evaluation mode; its weights must stay as they are (`fits` tells).
        timesteps: all that will be asked for.
        num_images: how many of the last latents are joint images.
        record: whether to record CUDA graphs; on a CPU there are none.
    """

    @torch.no_grad()
    def __init__(
        self, model: MedSora, timesteps: Sequence[int], *, num_images: int = 0, record: bool = True
    ) -> None:
        self.model, self.timesteps, self.num_images = model, tuple(timesteps), num_images
        self.record = record and model.device.type == "cuda"
        self._state = _state(model)
        t = torch.tensor(self.timesteps, device=model.device)
        self._table = model.modulation(t)
        self._row = torch.zeros(max(self.timesteps) + 1, dtype=torch.long, device=model.device)
        self._row[t] = torch.arange(len(t), device=model.device)
        self._recordings: dict[torch.Size, _Recording] = {}

    def fits(self, model: MedSora, timesteps: Sequence[int], num_images: int, record: bool) -> bool:
        """Whether this was made for the same weights, timesteps and images, and for recording or not."""
        return (
            self.model is model
            and (self.timesteps, self.num_images) == (tuple(timesteps), num_images)
            and self.record == (record and model.device.type == "cuda")
            and self._state == _state(model)
        )

    @torch.no_grad()
    def __call__(self, z: Tensor, t: Tensor) -> Tensor:
        """Return ε; nothing waits for the device."""
        if not self.record:
            return self._denoise(z, t)
        recording = self._recordings.get(z.shape) or self._record(z, t)
        if recording is None:
            return self._denoise(z, t)
        recording.z.copy_(z)
        recording.t.copy_(t)
        recording.graph.replay()
        return recording.eps.clone()

    def _denoise(self, z: Tensor, t: Tensor) -> Tensor:
        row = self._row[t[:1]]
        modulation = Modulation([block[row] for block in self._table.blocks], self._table.final[row])
        return self.model(z, t, num_images=self.num_images, modulation=modulation).eps

    def _record(self, z: Tensor, t: Tensor) -> _Recording | None:
        """Record a step for latents of this shape; None, and a word in the log, if it cannot be recorded."""
        z, t = z.clone(), t.clone()
        beside = torch.cuda.Stream()
        beside.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(beside):
            for _ in range(WARM_UPS):
                self._denoise(z, t)
        torch.cuda.current_stream().wait_stream(beside)
        graph = torch.cuda.CUDAGraph()
        try:
            with torch.cuda.graph(graph):
                eps = self._denoise(z, t)
        except RuntimeError as error:
            log.warning("sampling without a CUDA graph: %s", str(error).splitlines()[0])
            self.record = False
            return None
        self._recordings[z.shape] = _Recording(graph, z, t, eps)
        return self._recordings[z.shape]


def _state(model: MedSora) -> list[tuple[int, int]]:
    """What changes when weights move or are written to."""
    return [
        (parameter.data_ptr(), 0 if parameter.is_inference() else parameter._version)
        for parameter in model.parameters()
    ]
