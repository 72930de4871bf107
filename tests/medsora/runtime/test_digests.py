"""The digest of a file is that of its bytes, however many there are."""

from __future__ import annotations

import hashlib
from pathlib import Path

import pytest

from medsora.runtime.digests import sha256


@pytest.mark.parametrize("content", [b"", b"abc", bytes(range(256)) * 5000])
def test_a_files_digest_is_that_of_its_bytes(content: bytes, tmp_path: Path) -> None:
    path = tmp_path / "file"
    path.write_bytes(content)
    assert sha256(path) == hashlib.sha256(content).hexdigest()


def test_a_missing_file_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError):
        sha256(tmp_path / "missing")
