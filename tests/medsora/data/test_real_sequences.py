"""medsora.data.clips, medsora.data.reading.video_io: real endoscopy, four kinds of procedure in three kinds
of file: read, checked, cut into clips.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np

from medsora.data.reading.pixels import video_to_frames
from medsora.data.reading.video_io import read_frames
from tests.support.clip_dataset import clip_dataset


def test_all_four_sequences_give_their_own_clips(endoscopy_folder: Path, tmp_path: Path) -> None:
    data = clip_dataset(
        endoscopy_folder, interval=1, size=64, images=2, split="all", check_cache=tmp_path / "check.json"
    )
    facts = {v.source.name: (v.scan.container, v.scan.codec, v.scan.frames) for v in data.videos}
    assert facts == {
        "capsule_pillcam/4_C2_6mm_polyp_B_cut.wmv": ("asf", "wmv3", 18),
        "laparoscopy_videosum/test.mp4": ("mov", "h264", 150),
        "robotic_tools_endo3r/rgb1.mp4": ("mov", "h264", 301),
        "sinus_jhu": ("frames", "jpg", 35),
    }
    logo, rates = data.report.complaints()
    assert "possible burnt-in text or logo in 1 source," in logo  # the capsule maker's
    assert rates.startswith("frame rates lie between")
    firsts = [next(i for i in range(len(data)) if data.windows[i][0] == video) for video in range(4)]
    for index in firsts:
        choice = data.choose(0, index, flip=False)
        item = data.load(choice)
        assert item["video"].shape == (17, 3, 64, 64)
        assert {image.video for image in choice.images}.isdisjoint({choice.video})
        video = video_to_frames(item["video"])
        in_order = read_frames(data.videos[choice.video].source.path, choice.start, 17, 1, 64)
        assert np.array_equal(video, in_order)
        assert 20 < video.mean() < 220
