"""Checksums that Pillow and FFmpeg do not compare: those in PNG and FFV1 files, those of sampled videos."""

from __future__ import annotations

import json
import stat
import struct
import zlib
from contextlib import suppress
from functools import lru_cache
from pathlib import Path

from medsora.runtime.digests import sha256

MANIFEST, MAX_MANIFEST_BYTES = "manifest.json", 2**26
MAX_COMPARED_BYTES = 2**32  # no sampled video is as large; a hole of a file may be
BLOCK_BYTES = 2**20
REVERSED = bytes(int(f"{byte:08b}"[::-1], 2) for byte in range(256))
WITHOUT_CRC, WITH_CRC = 3, 8  # bytes behind a slice of FFV1: its size; and with CRCs, a status and the CRC
CRC_STARTS = (0, 0x79408C7A)  # initial CRC of versions 3 and 4; the CRC over a slice and its CRC equals it


def differs_from_manifest(video: Path) -> bool:
    """Return whether a file has another SHA-256 than the manifest beside it lists.

    Each file is compared once in a process, and again where it was written to. Files that no manifest lists
    with a digest are not compared: recordings, and videos of earlier versions.
    """
    manifest = video.with_name(MANIFEST)
    with suppress(OSError):
        wanted = _listed(manifest, _identity(manifest)).get(video.name)
        mode, _, size, _ = identity = _identity(video)
        compared = wanted is not None and stat.S_ISREG(mode) and size <= MAX_COMPARED_BYTES
        return compared and _digest(video, identity) != wanted
    return False


def _identity(path: Path) -> tuple[int, ...]:
    about = path.stat()
    return about.st_mode, about.st_ino, about.st_size, about.st_mtime_ns


@lru_cache(maxsize=64)
def _listed(manifest: Path, identity: tuple[int, ...]) -> dict[str, str]:
    mode, _, size, _ = identity
    if not stat.S_ISREG(mode) or size > MAX_MANIFEST_BYTES:
        return {}
    try:
        videos = json.loads(manifest.read_bytes())["videos"]
        return {each["file"]: each["sha256"] for each in videos if "sha256" in each}
    except (ValueError, KeyError, TypeError, RecursionError):
        return {}


@lru_cache(maxsize=2**16)
def _digest(video: Path, identity: tuple[int, ...]) -> str:
    return sha256(video)


def has_damaged_pixels(png: Path) -> bool:
    """Return whether the pixels of a PNG file (its IDAT chunks) do not match their CRC-32."""
    with png.open("rb") as file:
        file.seek(8)
        while len(head := file.read(8)) == 8:
            length, kind = struct.unpack(">I4s", head)
            if not kind.isalpha() or kind == b"IEND":
                return False
            if kind != b"IDAT":
                file.seek(length + 4, 1)
                continue
            crc = zlib.crc32(kind)
            while length and (block := file.read(min(length, BLOCK_BYTES))):
                crc, length = zlib.crc32(block, crc), length - len(block)
            wanted = file.read(4)
            if len(wanted) == 4 and wanted != crc.to_bytes(4, "big"):  # a cut file is another fault
                return True
    return False


def has_damaged_slices(packet: bytes) -> bool:
    """Return whether a packet of FFV1, from version 3 on, does not match its slices' sizes or CRCs.

    See RFC 9043, section 4.9. Files may be without CRCs: then the sizes alone are compared.
    """
    if slices := _slices(packet, WITH_CRC):
        return not any(all(_crc(part, start) == start for part in slices) for start in CRC_STARTS)
    return not _slices(packet, WITHOUT_CRC)


def _slices(packet: bytes, trailer: int) -> list[bytes]:
    """Return a packet's slices, each with its trailer of `trailer` bytes; none if the sizes do not fit."""
    end, slices = len(packet), []
    while end >= trailer:
        start = end - trailer - int.from_bytes(packet[end - trailer : end - trailer + 3], "big")
        if start < 0:
            return []
        slices.append(packet[start:end])
        end = start
    return slices if end == 0 else []


def _crc(content: bytes, start: int) -> int:
    """Return the CRC-32 from `start` on that takes each byte's highest bit first, unlike zlib's."""
    crc = zlib.crc32(content.translate(REVERSED), _reversed(start) ^ 0xFFFFFFFF) ^ 0xFFFFFFFF
    return _reversed(crc)


def _reversed(number: int) -> int:
    return int.from_bytes(number.to_bytes(4, "little").translate(REVERSED), "big")
