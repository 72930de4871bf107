"""Layouts: other strides, the same numbers, and nothing left behind."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from medsora.vae.layout import channels_last


@torch.no_grad()
def test_a_vae_decodes_alike_and_is_left_as_it_was(trained) -> None:
    z = torch.randn(1, 2, trained.latent_channels, 2, 2)
    plain = trained.decode(z)
    strides = {name: parameter.stride() for name, parameter in trained.named_parameters()}
    with channels_last(trained):
        assert any(
            convolution.weight.is_contiguous(memory_format=torch.channels_last_3d)
            and not convolution.weight.is_contiguous()
            for convolution in trained.modules()
            if isinstance(convolution, nn.Conv3d)
        )
        torch.testing.assert_close(trained.decode(z), plain, atol=1e-4, rtol=1e-4)
    assert {name: parameter.stride() for name, parameter in trained.named_parameters()} == strides


def test_2d_convolutions_are_left_alone_and_an_error_leaves_nothing_behind() -> None:
    model = nn.Sequential(nn.Conv2d(2, 3, 3), nn.Conv3d(2, 3, 3))

    def fail_inside() -> None:
        with channels_last(model):
            assert not model[1].weight.is_contiguous()
            raise RuntimeError("inside")

    with pytest.raises(RuntimeError, match="inside"):
        fail_inside()
    assert all(convolution.weight.is_contiguous() for convolution in model)
