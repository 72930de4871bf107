"""What sampled folders of pictures say of their model's training clips."""

from __future__ import annotations

from pathlib import Path

import pytest

from medsora.errors import BadInput
from medsora.runtime.digests import sealed
from medsora.runtime.files import write_json
from medsora.sampling.synthetic import MANIFEST, TRAINED_ON_KEY, read_trained_on


def test_a_changed_manifest_is_refused_and_another_programs_ignored(tmp_path: Path) -> None:
    path = tmp_path / MANIFEST
    (tmp_path / "video-00000").mkdir()
    write_json(path, sealed({TRAINED_ON_KEY: {"rate": 12.5}}))
    assert read_trained_on(tmp_path / "video-00000") == {"rate": 12.5}
    whole = path.read_text()
    for damage in (
        whole.replace("12.5", "13.5"),
        whole.replace("{", "y"),
        whole.replace("trained", "tra\xffned"),
    ):
        path.write_text(damage, encoding="latin-1")
        with pytest.raises(BadInput, match=r"manifest\.json is damaged"):
            read_trained_on(tmp_path / "video-00000")
    path.write_text('["another program"]')
    assert read_trained_on(tmp_path / "video-00000") == {}
