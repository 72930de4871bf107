"""medsora.data.reading.pixels, medsora.data.reading.margins, medsora.data.reading.resize: the pixel range
and back, margins cut off, and any picture brought to a clip's size.
"""

from __future__ import annotations

import numpy as np
import pytest
import torch

from medsora.data.reading.margins import NO_MARGINS, crop
from medsora.data.reading.pixels import frames_to_video, video_to_frames
from medsora.data.reading.resize import height_width, resize_and_crop


def test_every_grey_level_comes_back() -> None:
    frames = np.arange(256, dtype=np.uint8).reshape(2, 8, 16, 1).repeat(3, axis=-1)
    video = frames_to_video(frames)
    assert video.shape == (2, 3, 8, 16)
    assert (video.min(), video.max()) == (-1, 1)
    assert np.array_equal(video_to_frames(video), frames)


def test_values_outside_the_range_are_clamped_and_others_rounded() -> None:
    video = torch.tensor([-7.0, -1 + 0.6 / 127.5, -1 + 0.4 / 127.5, 1.5]).view(1, 1, 2, 2).expand(1, 3, 2, 2)
    assert video_to_frames(video)[0, ..., 0].tolist() == [[0, 1], [0, 255]]


def test_margins_are_parts_of_a_side() -> None:
    image = np.arange(200).reshape(10, 20)
    assert np.array_equal(crop(image, NO_MARGINS), image)
    assert np.array_equal(crop(image, (0.1, 0.2, 0.25, 0.05)), image[1:8, 5:19])
    assert crop(image, (0.6, 0.6, 0.5, 0.5)).shape == (1, 1), "at least one pixel is left"


@pytest.mark.parametrize(("size", "expected"), [(8, (8, 8)), ((4, 6), (4, 6)), ([4, 6], (4, 6))])
def test_a_size_is_one_side_or_both(size: object, expected: tuple[int, int]) -> None:
    assert height_width(size) == expected


@pytest.mark.parametrize("size", [0, (4, 0), -1])
def test_a_size_without_pixels_is_refused(size: object) -> None:
    with pytest.raises(ValueError, match="both sides must be at least 1 pixel"):
        height_width(size)


def test_the_middle_is_cut_out_and_nothing_is_distorted() -> None:
    image = np.zeros((20, 60, 3), dtype=np.uint8)
    image[:, 20:40] = 255  # the middle third: exactly what a square of it shows
    assert (resize_and_crop(image, 10)[:, 1:-1] == 255).all()
    assert (resize_and_crop(image, (10, 30))[:, :9] == 0).all()
    assert resize_and_crop(image, (20, 60)) is image
    gradient = np.linspace(0, 255, 64, dtype=np.uint8)[:, None, None].repeat(64, 1).repeat(3, 2)
    small = resize_and_crop(gradient, 16)
    assert small.shape == (16, 16, 3)
    assert np.abs(small[:, 0, 0] - gradient.reshape(16, 4, 64, 3).mean((1, 2))[:, 0]).max() < 4
