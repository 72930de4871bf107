"""A denoiser made ready for a run: the same answers from tables, made anew when the weights change."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from weakref import ref

import pytest
import torch
from torch import Tensor

from medsora.denoiser import MedSora
from medsora.denoiser.attention import window_mask
from medsora.sampling.prepared import PreparedDenoiser

TIMESTEPS = [999, 500, 3]


@torch.no_grad()
def test_every_timestep_gives_what_the_model_gives(small_model: Callable[..., MedSora]) -> None:
    for mixing, images in (("isolated", 0), ("mixed", 2)):
        model = small_model(mixing=mixing)
        prepared = PreparedDenoiser(model, TIMESTEPS, num_images=images)
        for timestep in TIMESTEPS:
            z, t = torch.randn(2, 4, 4, 8, 8), torch.full((2,), timestep)
            torch.testing.assert_close(
                prepared(z, t), model(z, t, num_images=images).eps, atol=1e-5, rtol=1e-5
            )


@torch.no_grad()
def test_adaln_is_not_computed_again(small_model: Callable[..., MedSora], monkeypatch) -> None:
    model = small_model()
    prepared = PreparedDenoiser(model, TIMESTEPS)
    monkeypatch.setattr(MedSora, "modulation", None)
    prepared(torch.randn(1, 4, 4, 8, 8), torch.tensor([500]))


@torch.no_grad()
def test_it_fits_until_weights_move_or_timesteps_change(small_model: Callable[..., MedSora]) -> None:
    model = small_model()
    prepared = PreparedDenoiser(model, TIMESTEPS, record=False)
    assert prepared.fits(model, TIMESTEPS, 0, False)
    assert not prepared.fits(model, TIMESTEPS[:2], 0, False)
    assert not prepared.fits(model, TIMESTEPS, 1, False)
    assert not prepared.fits(small_model(), TIMESTEPS, 0, False)
    model.blocks[0].modulation.bias.data = model.blocks[0].modulation.bias.data.clone()
    assert not prepared.fits(model, TIMESTEPS, 0, False)


@torch.no_grad()
def test_a_recording_reads_a_new_table_at_the_old_address(
    small_model: Callable[..., MedSora], monkeypatch: pytest.MonkeyPatch
) -> None:
    model = small_model()
    prepared = recording_denoiser(model)
    StandInForCuda(monkeypatch, fails=False)
    prepared._record(z := torch.randn(1, 4, 4, 8, 8), t := torch.tensor([500]))
    address = prepared._table.data_ptr()
    for parameter in model.parameters():
        parameter.data.mul_(1.5)
    prepared.tabulate()
    assert address == prepared._table.data_ptr()
    torch.testing.assert_close(prepared._denoise(z, t), model(z, t).eps, atol=1e-5, rtol=1e-5)


def test_there_are_no_graphs_on_a_cpu(small_model: Callable[..., MedSora]) -> None:
    assert not PreparedDenoiser(small_model(), TIMESTEPS, record=True).record


class StandInForCuda:
    """CUDA's streams and graphs on a CPU: the stream that is current, and a capture that may fail."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, *, fails: bool) -> None:
        self.fails, self.current = fails, "main"
        monkeypatch.setattr(torch.cuda, "device", lambda _: nullcontext())
        monkeypatch.setattr(torch.cuda, "Stream", lambda: StreamStandIn("beside"))
        monkeypatch.setattr(torch.cuda, "current_stream", lambda *_: StreamStandIn(self.current))
        monkeypatch.setattr(torch.cuda, "set_stream", lambda stream: setattr(self, "current", stream.name))
        monkeypatch.setattr(torch.cuda, "stream", self.stream)
        monkeypatch.setattr(torch.cuda, "graph", self.graph)
        monkeypatch.setattr(torch.cuda, "CUDAGraph", object)

    @contextmanager
    def stream(self, stream: StreamStandIn) -> Iterator[None]:
        before, self.current = self.current, stream.name
        yield
        self.current = before

    @contextmanager
    def graph(self, _: object, *, stream: StreamStandIn, capture_error_mode: str) -> Iterator[None]:
        before, self.current = self.current, stream.name
        yield
        if self.fails:  # as torch.cuda.graph's own end does, before it leaves its stream
            raise RuntimeError("operation not permitted when stream is capturing")
        self.current = before


class StreamStandIn:
    def __init__(self, name: str) -> None:
        self.name = name

    def wait_stream(self, _: StreamStandIn) -> None:
        """Nothing to wait for on a CPU."""


def recording_denoiser(model: MedSora) -> PreparedDenoiser:
    prepared = PreparedDenoiser(model, TIMESTEPS)
    prepared.record = True
    return prepared


def test_a_recording_holds_the_tables_that_it_reads(
    small_model: Callable[..., MedSora], monkeypatch: pytest.MonkeyPatch
) -> None:
    prepared = recording_denoiser(small_model())
    StandInForCuda(monkeypatch, fails=False)
    recording = prepared._record(torch.randn(1, 4, 4, 8, 8), torch.tensor([500]))
    window = prepared.model.blocks[0].attention.window
    mask = window_mask(16, window, torch.device("cpu"), torch.float32)
    assert any(table is mask for table in recording.tables)


def test_a_failed_recording_leaves_the_callers_stream_current(
    small_model: Callable[..., MedSora], monkeypatch: pytest.MonkeyPatch
) -> None:
    prepared = recording_denoiser(small_model())
    cuda = StandInForCuda(monkeypatch, fails=True)
    z, t = torch.randn(1, 4, 4, 8, 8), torch.tensor([500])
    torch.testing.assert_close(prepared(z, t), prepared._denoise(z, t))
    assert cuda.current == "main"


def test_no_features_are_kept_while_sampling(small_model: Callable[..., MedSora]) -> None:
    model = small_model()
    features, alive = [], []

    def note(_module: torch.nn.Module, _given: object, outputs: tuple[Tensor, Tensor]) -> None:
        features.append(ref(outputs[1]))
        alive.append(sum(feature() is not None for feature in features))

    for block in model.blocks:
        block.register_forward_hook(note)
    z, t = torch.randn(1, 4, 4, 8, 8), torch.tensor([500])
    PreparedDenoiser(model, TIMESTEPS)(z, t)
    assert alive == [1] * len(model.blocks)
    assert len(model(z, t).features) == len(model.blocks)
