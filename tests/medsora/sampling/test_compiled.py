"""Compiled blocks: one graph for all of them, whose tables are arguments, with the plain blocks' results."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch

from medsora.denoiser import MedSora
from medsora.denoiser.attention import LocalAttention


@pytest.mark.parametrize("gradients", [False, True])
def test_blocks_share_one_graph_and_are_given_their_tables(
    small_model: Callable[..., MedSora], monkeypatch: pytest.MonkeyPatch, gradients: bool
) -> None:
    graphs: list[torch.fx.GraphModule] = []
    requested: list[int] = []
    tables = LocalAttention.tables

    def note_graph(graph: torch.fx.GraphModule, _inputs: list[torch.Tensor]) -> Callable:
        graphs.append(graph)
        return graph.forward

    def note_tables(attention: LocalAttention, length: int, *where: object) -> tuple[torch.Tensor, ...]:
        requested.append(length)
        return tables(attention, length, *where)

    model = small_model()
    z, t = torch.randn(1, 3, 4, 8, 8), torch.tensor([500])
    with torch.set_grad_enabled(gradients):
        expected = model(z, t).eps
        monkeypatch.setattr(LocalAttention, "tables", note_tables)
        torch._dynamo.reset()
        for block in model.blocks:
            block.compile(backend=note_graph, dynamic=False)
        compiled = model(z, t).eps
    torch.testing.assert_close(compiled, expected, atol=1e-5, rtol=1e-5)
    assert len(graphs) == 1
    assert requested == [16], "the model alone reads the cache"
    torch._dynamo.reset()
