"""The truth that is told of a written phantom is that of its pictures: it explains their exact flow."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import load_file

from medsora.config.choices import PHANTOM_LOOKS
from medsora.data.exact_flow import flow_path
from medsora.data.phantom import write_phantom
from medsora.data.phantom.truth import find_truth
from medsora.runtime.digests import sealed, unsealed
from medsora.runtime.files import write_json

SIZE = 24


@pytest.fixture(scope="module", params=PHANTOM_LOOKS)
def folder(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A phantom of three short clips, one of each kind."""
    made = tmp_path_factory.mktemp("phantom")
    write_phantom(made, videos=3, frames=3, size=SIZE, seed=4, polyp_size=1.5, look=request.param)
    return made


def test_poses_and_depth_carry_pixels_along_the_exact_flow(folder: Path) -> None:
    y, x = np.mgrid[:SIZE, :SIZE]
    pixels = np.stack([x.ravel(), y.ravel()], axis=1)
    without_depth = 0
    for video in sorted(folder.glob("*.mkv")):
        truth, known = find_truth(video), load_file(flow_path(video))
        assert truth is not None
        rotations, positions = truth.poses([0, 1, 2])
        for k in range(2):
            depth = truth.depth(k, pixels)
            rays = np.column_stack([(pixels - (SIZE - 1) / 2) / truth.lens.focal, np.ones(len(pixels))])
            world = (rays * depth[:, None]) @ rotations[k].T + positions[k]
            seen = (world - positions[k + 1]) @ rotations[k + 1]
            landed = seen[:, :2] / seen[:, 2:] * truth.lens.focal + (SIZE - 1) / 2
            flow, valid = known["flow"][k].reshape(2, -1).T, known["valid"][k].ravel()
            without_depth += (valid & np.isnan(depth)).sum()
            of_wall = valid & np.isfinite(depth)
            assert of_wall.mean() > 0.3
            np.testing.assert_allclose((landed - pixels)[of_wall], flow[of_wall], rtol=2e-3, atol=2e-3)
    assert 0 < without_depth < 0.4 * pixels.size  # the instrument, which moves by itself


def test_only_clips_of_todays_renderer_have_truth(folder: Path, tmp_path: Path) -> None:
    assert find_truth(folder / "another.mkv") is None
    assert find_truth(tmp_path / "phantom-00000.mkv") is None
    recipe = json.loads((folder / "phantom.json").read_text())
    write_json(tmp_path / "phantom.json", sealed(unsealed(recipe) | {"look": "narrow-band 1"}))
    assert find_truth(tmp_path / "phantom-00000.mkv") is None
    (tmp_path / "phantom.json").write_text("[]")
    assert find_truth(tmp_path / "phantom-00000.mkv") is None
