"""Eq. 13: colours of the compass, brightness by the frame's fastest pixel, black where nothing moves."""

from __future__ import annotations

import colorsys
from math import cos, radians, sin

import pytest
import torch

from medsora.flow_prior import flow_to_rgb

# Direction in degrees, clockwise on the screen because y points down, and its pure hue.
COMPASS = {
    0: (1, 0, 0),  # right: red
    45: (1, 0.75, 0),
    90: (0.5, 1, 0),  # down: yellow-green
    135: (0, 1, 0.25),
    180: (0, 1, 1),  # left: cyan
    225: (0, 0.25, 1),
    270: (0.5, 0, 1),  # up: violet
    315: (1, 0, 0.75),
}


@pytest.mark.parametrize(("degrees", "colour"), COMPASS.items())
def test_the_eight_directions_have_their_colours(degrees, colour):
    direction = torch.tensor([cos(radians(degrees)), sin(radians(degrees))])
    flow = 2.5 * direction.view(1, 1, 2, 1, 1).expand(1, 1, 2, 3, 3)
    rgb = flow_to_rgb(flow)[0, 0, :, 1, 1]
    torch.testing.assert_close(rgb, torch.tensor(colour, dtype=torch.float32), atol=1e-5, rtol=0)


def test_equals_the_standard_library_on_random_flow():
    flow = torch.randn(2, 3, 2, 4, 5)
    rgb = flow_to_rgb(flow)
    assert rgb.shape == (2, 3, 3, 4, 5)
    magnitude = flow.norm(dim=2)
    hue = torch.atan2(flow[:, :, 1], flow[:, :, 0]).rad2deg().remainder(360) / 360
    for b, f, y, x in [(0, 0, 0, 0), (1, 2, 3, 4), (0, 1, 2, 3), (1, 0, 1, 1)]:
        value = float(magnitude[b, f, y, x] / magnitude[b, f].max())
        expected = colorsys.hsv_to_rgb(float(hue[b, f, y, x]), 1, value)
        torch.testing.assert_close(rgb[b, f, :, y, x], torch.tensor(expected), atol=1e-5, rtol=0)


def test_brightness_is_relative_to_each_frame_alone():
    flow = torch.zeros(1, 2, 2, 2, 2)
    flow[0, 0, 0] = torch.tensor([[1.0, 2.0], [4.0, 0.0]])
    flow[0, 1, 0, 0, 0] = 100
    red = flow_to_rgb(flow)[0, :, 0]
    torch.testing.assert_close(red[0], torch.tensor([[0.25, 0.5], [1.0, 0.0]]))
    torch.testing.assert_close(red[1], torch.tensor([[1.0, 0.0], [0.0, 0.0]]))


@pytest.mark.parametrize("still", [0.0, -0.0])
def test_no_motion_is_black(still):
    assert torch.equal(flow_to_rgb(torch.full((1, 2, 2, 4, 4), still)), torch.zeros(1, 2, 3, 4, 4))


@pytest.mark.parametrize("scale", [1e-44, 1e-30, 1e-3, 1e18])
def test_any_magnitude_stays_a_picture(scale):
    rgb = flow_to_rgb(scale * torch.randn(1, 1, 2, 8, 8))
    assert torch.isfinite(rgb).all()
    assert rgb.min() >= 0
    assert rgb.max() <= 1
