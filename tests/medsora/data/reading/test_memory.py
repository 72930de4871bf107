"""medsora.data.reading.memory: what decoding takes is counted first, and bounded over all readers."""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Callable
from pathlib import Path

import av
import pytest
from PIL import Image

from medsora.data.reading import decoding, memory
from medsora.data.reading.decoding import UnreadableVideo
from medsora.data.reading.frame_folder import read_image
from medsora.data.reading.memory import MAX_DECODING_BYTES, decoding_memory, reference_frames
from medsora.data.reading.video_io import read_frames
from tests.support.video_files import encode, moving_frames


def with_references(path: Path, references: int, codec: str = "264") -> Path:
    options = {f"x{codec}-params": f"ref={references}:bframes=0:log-level=none"}
    return encode(path, moving_frames(30), f"libx{codec}", "yuv420p", options)


@pytest.mark.parametrize("ending", ["mp4", "mkv", "ts"])
@pytest.mark.parametrize(
    ("codec", "references"), [("264", 1), ("264", 5), ("264", 16), ("265", 1), ("265", 4)]
)
def test_reference_frames_are_read_from_the_header(
    codec: str, references: int, ending: str, tmp_path: Path
) -> None:
    path = with_references(tmp_path / f"video.{ending}", references, codec)
    with av.open(str(path)) as container:
        context = container.streams.video[0].codec_context
        found = reference_frames(context.name, context.extradata)
    assert references <= found <= references + 2 * (codec == "265")  # HEVC counts the current picture too


@pytest.mark.parametrize(
    "header", [None, b"", b"\1", b"\1\xf4\0\x3e\xff\xe1\0\x05gggggggg", b"\0\0\1\x67\0\0\0"]
)
def test_a_header_that_does_not_tell_stands_for_the_most(header: bytes | None) -> None:
    for codec, most in (("h264", 16), ("hevc", 16), ("vp9", 8), ("mpeg2video", 2)):
        assert reference_frames(codec, header) == most


def test_a_video_that_takes_too_much_is_refused_before_it_is_decoded(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    few, many = (with_references(tmp_path / f"{number}.mp4", number) for number in (1, 16))
    monkeypatch.setattr(decoding, "MAX_DECODING_BYTES", 64 * 48 * 30)  # bytes
    assert len(read_frames(few)) == 30
    with pytest.raises(UnreadableVideo, match="its header requires 0 MiB to decode frames of 64x48 pixels"):
        read_frames(many)


def test_what_is_taken_never_exceeds_the_bound() -> None:
    """Twelve threads ask for a third each: three have it at a time, and a nested reader does not wait."""
    held, most, lock = [0], [0], threading.Lock()

    def decode() -> None:
        with decoding_memory(MAX_DECODING_BYTES // 3), decoding_memory(1):
            with lock:
                held[0] += 1
                most[0] = max(most[0], held[0])
            time.sleep(0.01)
            with lock:
                held[0] -= 1

    threads = [threading.Thread(target=decode) for _ in range(12)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert 1 <= most[0] <= 3
    assert memory._budget._free == MAX_DECODING_BYTES


def test_loaders_decode_large_files_one_after_another(tmp_path: Path) -> None:
    """Two processes that share the bound never hold more than their share at the same time."""

    def load() -> None:
        memory.share_with_loaders(tmp_path / "lock", loaders=8)
        with decoding_memory(MAX_DECODING_BYTES // 2):
            (tmp_path / "held").touch(exist_ok=False)
            time.sleep(0.2)
            (tmp_path / "held").unlink()
        with decoding_memory(MAX_DECODING_BYTES // 16):
            pass

    pids = [_forked(load) for _ in range(3)]
    assert [os.waitpid(pid, 0)[1] for pid in pids] == [0, 0, 0]


def _forked(work: Callable[[], None]) -> int:
    pid = os.fork()
    if pid == 0:
        status = 1
        try:
            work()
            status = 0
        finally:
            os._exit(status)
    return pid


def test_pictures_take_their_part(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    sizes = []
    monkeypatch.setattr(memory._budget, "share", 1)
    take = memory._budget.taken
    monkeypatch.setattr(memory._budget, "taken", lambda size: sizes.append(size) or take(size))
    Image.new("RGB", (40, 30)).save(tmp_path / "picture.png")
    read_image(tmp_path / "picture.png")
    assert sizes == [40 * 30 * 16]


def test_a_share_that_just_suffices_decodes_sizes_that_are_no_whole_blocks(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """FFmpeg compares its limit with the size in whole blocks, not with the one that is shown."""
    path = encode(
        tmp_path / "odd.mp4", moving_frames(30, 38, 50), "libx264", "yuv420p", {"x264-params": "ref=16"}
    )
    monkeypatch.setattr(decoding, "granted_bytes", lambda needed: needed)
    assert len(read_frames(path)) == 30
