"""Cached tables are real and usable in autograd in any mode of the first call; their number is bounded."""

from __future__ import annotations

import gc
import weakref

import torch
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensor, FakeTensorMode

from medsora.tables import MAX_TABLES, collect_tables, kept_table


def test_built_once_for_the_same_sizes() -> None:
    computed = []

    @kept_table
    def numbers(count: int) -> Tensor:
        computed.append(count)
        return torch.arange(count)

    assert numbers(3) is numbers(3)
    assert torch.equal(numbers(4), torch.arange(4))
    assert computed == [3, 4]


def test_real_after_a_first_use_in_an_estimate() -> None:
    @kept_table
    def numbers(count: int) -> Tensor:
        return torch.arange(count, dtype=torch.float32)

    with FakeTensorMode(allow_non_fake_inputs=True):
        assert isinstance(numbers(3) + torch.ones(3), FakeTensor)
    assert torch.equal(numbers(3) + torch.ones(3), torch.tensor([1.0, 2.0, 3.0]))


def test_usable_under_gradients_after_a_first_use_in_inference() -> None:
    @kept_table
    def numbers(count: int) -> Tensor:
        return torch.arange(count, dtype=torch.float32)

    with torch.inference_mode():
        numbers(3)
    leaf = torch.ones(3, requires_grad=True)
    (numbers(3) * leaf).sum().backward()
    assert torch.equal(leaf.grad, numbers(3))


def test_compiled_code_sees_through_it() -> None:
    @kept_table
    def numbers(count: int) -> Tensor:
        return torch.arange(count, dtype=torch.float32)

    compiled = torch.compile(lambda x: x + numbers(3), backend="eager", fullgraph=True)
    assert torch.equal(compiled(torch.ones(3)), torch.tensor([1.0, 2.0, 3.0]))


def test_only_the_tables_used_last_are_kept() -> None:
    @kept_table
    def numbers(count: int) -> Tensor:
        return torch.arange(count)

    often, once = weakref.ref(numbers(1)), weakref.ref(numbers(2))
    for count in range(3, MAX_TABLES + 2):
        numbers(count)
        numbers(1)
    gc.collect()
    assert numbers.cache_info().currsize == MAX_TABLES
    assert once() is None
    assert often() is numbers(1)


def test_a_table_lives_as_long_as_who_collected_it() -> None:
    @kept_table
    def numbers(count: int) -> Tensor:
        return torch.arange(count)

    numbers(1)
    with collect_tables() as collected:
        table = numbers(1)
    numbers(2)
    assert collected == [table]
    held = weakref.ref(table)
    del table
    for count in range(3, MAX_TABLES + 4):
        numbers(count)
    gc.collect()
    assert held() is collected[0]
    assert torch.equal(held(), torch.arange(1))
