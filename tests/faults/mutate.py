"""Mutations of bytes and of structure, each drawn from a generator so that its number brings it back."""

from __future__ import annotations

import random
import struct
from copy import deepcopy
from typing import Any

ODD_NUMBERS = (0, 1, -1, 127, 255, 32767, 65535, 2**31 - 1, 2**32 - 1, 2**63 - 1, 10**30, 10**400)
ODD_VALUES: tuple[Any, ...] = (
    *ODD_NUMBERS,
    0.5,
    float("nan"),
    float("inf"),
    -1e308,
    True,
    None,
    "",
    "x" * 5000,
    "../../outside",
    "/etc/passwd",
    "${oc.env:HOME}",
    "<script>alert(1)</script>",
    "\u202e\x07\x00",
    [],
    {},
    [[[]]],
    {"a": {"b": 1}},
    list(range(300)),
)


def mutate_bytes(content: bytes, draw: random.Random, times: int | None = None) -> bytes:
    """Return `content` after one to four cuts, flips, insertions, repetitions or overwritten numbers."""
    data = bytearray(content)
    for _ in range(times or draw.randint(1, 4)):
        if not data:
            return bytes(data)
        at = draw.randrange(len(data))
        length = min(draw.choice((1, 2, 4, 16, 256)), len(data) - at)
        kind = draw.randrange(7)
        if kind == 0:
            data[at] ^= 1 << draw.randrange(8)
        elif kind == 1:
            data[at : at + length] = draw.randbytes(length)
        elif kind == 2:
            del data[at : at + length]
        elif kind == 3:
            data[at:at] = data[at : at + length]
        elif kind == 4:
            data[at:at] = draw.randbytes(length)
        elif kind == 5:
            number = draw.choice((0, 1, 0x7F, 0x7FFF, 0xFFFF, 0x7FFFFFFF, 0xFFFFFFFF))
            data[at : at + 4] = struct.pack(draw.choice("<>") + "I", number)
        elif draw.random() < 0.2:
            del data[at:]
        else:
            other = draw.randrange(len(data))
            data[at : at + length] = data[other : other + length]
    return bytes(data)


def mutate_tree(tree: Any, draw: random.Random, times: int | None = None) -> Any:
    """Return nested dictionaries and lists after one to three changes of a value, a key or the structure."""
    changed = deepcopy(tree)
    for _ in range(times or draw.randint(1, 3)):
        found = places(changed)
        if not found:
            return deepcopy(draw.choice(ODD_VALUES))
        parent, key = draw.choice(found)
        kind = draw.randrange(6)
        if kind == 0:
            del parent[key]
        elif kind == 1 and isinstance(parent, dict):
            parent[draw.choice((str(key)[:-1], str(key) + "x", "\u00e4", ""))] = parent.pop(key)
        elif kind == 2:
            other, name = draw.choice(found)
            parent[key] = deepcopy(other[name]) if _holds(other, name) else None
        elif kind == 3 and isinstance(parent[key], int | float) and not isinstance(parent[key], bool):
            parent[key] = draw.choice((parent[key] * 2, -parent[key], parent[key] + 1, parent[key] / 3, 0))
        else:
            parent[key] = deepcopy(draw.choice(ODD_VALUES))  # the next change may go into it
    return changed


def mutate_boxes(content: bytes, draw: random.Random) -> bytes:
    """Return an mp4 or avi file with a field, a size or a whole box changed, dropped or repeated."""
    boxes = _boxes(content, 0, len(content), big_endian=content[4:8] == b"ftyp")
    if not boxes:
        return mutate_bytes(content, draw)
    start, size, header = draw.choice(boxes)
    data = bytearray(content)
    kind = draw.randrange(4)
    if kind == 0:
        del data[start : start + size]
    elif kind == 1:
        data[start:start] = data[start : start + size]
    elif kind == 2:
        number = draw.choice((0, 1, 7, 8, size // 2, size + 1, 0x7FFFFFFF, 0xFFFFFFFF))
        offset = start if content[4:8] == b"ftyp" else start + 4
        data[offset : offset + 4] = struct.pack(">I" if content[4:8] == b"ftyp" else "<I", number)
    else:
        body = bytes(data[start + header : start + size])
        data[start + header : start + size] = mutate_bytes(body, draw, times=1)
    return bytes(data)


def mutate_packets(content: bytes, draw: random.Random) -> bytes:
    """Return an MPEG-TS file in which packets belong to other streams, here and there or from one on."""
    data = bytearray(content)
    packets = range(0, len(data) - 187, 188)
    first, part = draw.choice(packets), draw.choice((0.01, 0.1, 1.0))
    bit = 1 << draw.randrange(13)
    for at in packets:
        if at >= first and draw.random() < part:
            pid = int.from_bytes(data[at + 1 : at + 3], "big") ^ bit
            data[at + 1 : at + 3] = pid.to_bytes(2, "big")
    return bytes(data)


def _boxes(content: bytes, start: int, stop: int, *, big_endian: bool) -> list[tuple[int, int, int]]:
    """Return (start, size, header size) of every mp4 box or RIFF chunk, nested ones too."""
    found = []
    while start + 8 <= stop and len(found) < 500:
        if big_endian:
            size, kind, header = *struct.unpack(">I4s", content[start : start + 8]), 8
            inner = kind in (b"moov", b"trak", b"mdia", b"minf", b"stbl", b"dinf", b"udta", b"edts")
        else:
            kind, length = struct.unpack("<4sI", content[start : start + 8])
            inner = kind in (b"RIFF", b"LIST")
            size, header = 8 + length + length % 2, 12 if inner else 8
        if size < header or start + size > stop:
            break
        found.append((start, size, header))
        if inner:
            found += _boxes(content, start + header, start + size, big_endian=big_endian)
        start += size
    return found


def places(tree: Any) -> list[tuple[Any, Any]]:
    """Return (container, key) of every value in nested dictionaries and lists."""
    if isinstance(tree, dict):
        own = [(tree, key) for key in tree]
    elif isinstance(tree, list):
        own = [(tree, index) for index in range(len(tree))]
    else:
        return []
    return own + [place for container, key in own for place in places(container[key])]


def _holds(container: Any, key: Any) -> bool:
    return key in container if isinstance(container, dict) else key < len(container)
