"""medsora.data.phantom.render, medsora.data.phantom.scene: the phantom's default look is frozen: models,
weights and metrics that were published depend on its pixels.

A new look, mask or polyp size is an option beside the default one, whose pixels never change.
"""

from __future__ import annotations

import base64
import zlib

import numpy as np
import pytest

from medsora.data.phantom import clip_seed, render_clip
from medsora.data.phantom.scene import Scene

FRAMES, SIZE_PX = 5, 64
# NumPy, OpenBLAS and OpenCV choose their vector instructions by the CPU, so single pixels differ by one level
# (at most 8 of the 61,440 numbers of a clip, with AVX-512, AVX2 or neither). A hash of the whole clip would
# break on another CPU; hence one byte per row of pixels, and a few rows that may differ.
MAX_DIFFERENT_ROWS = 12  # out of the 128 in a fingerprint
CLIPS = [  # corpus seed, clip, what it shows, the endoscope's mask, fingerprint
    (
        0,
        0,
        "polyp",
        "octagon",
        "+0uip+FLhbQlBgXGI6b5B8K0zlaGqwuN4INCFUAiuSyVt/aZ/CG00a5Dg5rOy5SNrqpKu4evED2ZSNXrfs9Qcktm"
        "1Ly6AaKTj54nBMKi0z95Y5+PXEQxLUelDy8u+8Mwu6bTQfIDeXvfOK0PnOC6ySHzWmcpl/HmrVgXLupOY90=",
    ),
    (
        0,
        2,
        "instrument",
        "none",
        "DsMv16cAfoMw7S1uv1nRrRLHjxbjCEFks6ZDyJPCJdlelAFR/mRiGhsZ+fjjvKJ/PFeSQRucMCHgDBzoJzRtPsOW"
        "Pw77+cu/MXGEmxFYajkbbVo20peCrIlYNPx8fdpHAfJPgd0BT4CtvzgmzadbOW2c5i+Aqn9ZTo0+JEt8CpM=",
    ),
    (
        0,
        3,
        "neither",
        "none",
        "vwtGBXDTfXrI1Z2FT6moXmB57/SokOb0ePjFP0XqQ9Wwwy/XsGewxZgjN/r3MgrprEeAsPHiSLc1g4/gAqJpjfGM"
        "7RfY2jUL51SSutyAOSPuNK5s/bir7uh6/igvMWwffP43s2T5StxSrgJkRBsYX2+AZS6hcgu1j2IY7i/716A=",
    ),
    (
        1,
        1,
        "neither",
        "circle",
        "IxXW8w5Bkwp2gQsUImLnORF6Qk7VEX4e2CShwXDNtJLF2QLAzwxyhhjuT+iAxQRsF9k/R2vouq0It095994gQ/R9"
        "Qix44I/y9pdUqzqX7l3A1cj4hlXlfcsAcu0A/dK6W37/5kTaWUN7fdYf2ShRkt09e7gOBhcC8TuBzAdf+jE=",
    ),
    (
        2,
        2,
        "instrument",
        "octagon",
        "6SirWdnD3VPXhY3cW0lNaKaHKL8zyZhA46JeWsVzmJLr50/55tEdt/7uzAZgueGdPqoxofW2iVRPdVD4R75v4gTr"
        "Rid7NxWidU2+84+iFO4A0uC5fhwlpA3D0z7yXccGslETPJ6LijU/T9OzbB0qiAdh+dRv7jU7HbrAqj15dTU=",
    ),
    (
        2,
        4,
        "polyp",
        "none",
        "+JYFOX9NJBlf6Ojt55BWW/f5C17NGb99j6ObLpV1Oa64zf4pkzA0h5W20kviXHNgmAw6F5fh4dCJS4VaLEjqDvIf"
        "AyBVe0a+Awzn0BoFT3sSUqcqcpiQvSD0ge4LZrdpopFzEFUokiSNB4gNalJIPraKJ0SNIsuG35GTYU5e9Cw=",
    ),
    (
        7,
        0,
        "neither",
        "octagon",
        "l4SC0kpwgY9c1NBwFozdZ8o1IOon3QRy0nYor/mWjsMdeQ8zGV3w4ps+kK2Y0aWdjJcssrkSxwbGTmegzpYyz5kV"
        "Tqb+W1OzLsvF61szSSWYCnkoRcxvr8YvgvDPNeoTujDA7+6cQj2bH6n8MmOeqUsflqveWDziJpMZ8MOde5Y=",
    ),
    (
        1002,
        4,
        "polyp",
        "circle",
        "HJTSvQ8HBWy+8q7JshiS+PJMw0FtCLDKdWxKIcL+D3O0FKbq7CGJ786CKy1qMMLAiA7DA2OuKHOjwLMbzvTNQDu0"
        "7FydaHTHeLCHYHEp/q2uclTXIqBuFw01IV1QvzqWLBUK3V4H+8247xO4E0PwF6zfQpPOOYIOeU52zaJMHLY=",
    ),
]


def fingerprint(video: np.ndarray) -> bytes:
    """Hash every row of pixels of the first and last frame of uint8 (F, H, W, 3) to a byte: 2 * H bytes."""
    return bytes(zlib.crc32(row.tobytes()) & 0xFF for frame in video[[0, -1]] for row in frame)


def different_rows(video: np.ndarray, expected: str) -> int:
    """Count the rows whose hashes are not those of `expected` (base64)."""
    return sum(a != b for a, b in zip(fingerprint(video), base64.b64decode(expected), strict=True))


@pytest.mark.parametrize(("seed", "index", "kind", "mask", "expected"), CLIPS)
def test_default_look_keeps_its_pixels(seed: int, index: int, kind: str, mask: str, expected: str) -> None:
    clip = render_clip(clip_seed(seed, index), FRAMES, SIZE_PX)
    assert clip.kind == kind
    assert Scene(clip.seed, polyp=clip.polyp, instrument=clip.instrument).vignette == mask
    assert different_rows(clip.video, expected) <= MAX_DIFFERENT_ROWS


def test_a_slightly_different_look_is_noticed(monkeypatch: pytest.MonkeyPatch) -> None:
    """A lamp that is 0.2 % brighter, or a narrower mask, changes more rows than rounding may."""
    seed, index, _, _, expected = CLIPS[0]
    draw = Scene.__init__

    def brighter(scene: Scene, *arguments: object, **options: object) -> None:
        draw(scene, *arguments, **options)
        scene.exposure *= 1.002

    with monkeypatch.context() as patch:
        patch.setattr(Scene, "__init__", brighter)
        clip = render_clip(clip_seed(seed, index), FRAMES, SIZE_PX)
    assert different_rows(clip.video, expected) > MAX_DIFFERENT_ROWS
    masked = render_clip(clip_seed(seed, index), FRAMES, SIZE_PX).video.copy()
    masked[:, :, :20] //= 2
    assert different_rows(masked, expected) > MAX_DIFFERENT_ROWS
