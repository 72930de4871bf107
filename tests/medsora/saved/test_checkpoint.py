"""medsora.saved.checkpoint, medsora.saved.manifest, medsora.saved.optimizer: checkpoints are whole or not
there, and a damaged one falls back to the one before it.
"""

from __future__ import annotations

import errno
import json
import os
import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from medsora.denoiser import MedSora
from medsora.errors import BadInput
from medsora.runtime.digests import sha256
from medsora.saved.checkpoint import (
    checkpoint_folders,
    latest_checkpoint,
    newest_complete,
    save_checkpoint,
    save_model,
)
from medsora.saved.optimizer import optimizer_tensors, restore_optimizer
from tests.support import tiny_pipeline
from tests.support import tiny_training as tiny
from tests.support.disk.failing_reads import ERRORS, failing_reads


def save(root: Path, step: int, **options) -> Path:
    return save_checkpoint(
        root,
        step,
        lambda folder: save_file({"w": torch.full((64,), float(step))}, folder / "model.safetensors"),
        {"w/exp_avg": torch.zeros(64)},
        {"note": step},
        **{"keep": 2, **options},
    )


def tree(root: Path) -> dict[str, bytes]:
    return {str(path): path.read_bytes() for path in sorted(root.rglob("*")) if path.is_file()}


def test_the_newest_complete_checkpoint_is_used(tmp_path: Path) -> None:
    save(tmp_path, 5)
    save(tmp_path, 10)
    found = latest_checkpoint(tmp_path, pytest.fail)
    assert (found.step, found.state["note"]) == (10, 10)


def test_an_entry_of_the_state_is_of_the_wanted_type(tmp_path: Path) -> None:
    save(tmp_path, 5)
    found = latest_checkpoint(tmp_path, pytest.fail)
    assert found.value("note", int) == 5
    for key, kind in (("note", str), ("note", bool), ("absent", int)):
        with pytest.raises(BadInput, match=f"state.json has .* as '{key}' instead of a {kind.__name__}"):
            found.value(key, kind)


def test_the_caller_decides_what_happens_to_damage(tmp_path: Path) -> None:
    older, newer = save(tmp_path, 5), save(tmp_path, 10)
    (newer / "model.safetensors").unlink()
    noted: list[tuple[Path, str]] = []
    folders = checkpoint_folders(tmp_path)
    assert newest_complete(folders, lambda *damage: noted.append(damage)) == older
    assert noted == [(newer, "model.safetensors is missing")]
    assert checkpoint_folders(tmp_path) == folders == [newer, older]  # neither moved nor removed


@pytest.mark.parametrize("damage", ["cut", "changed", "missing", "manifest"])
def test_a_damaged_checkpoint_is_set_aside_and_reported(tmp_path: Path, damage: str) -> None:
    save(tmp_path, 5)
    newest = save(tmp_path, 10)
    victim = newest / "model.safetensors"
    if damage == "cut":
        victim.write_bytes(victim.read_bytes()[: victim.stat().st_size // 2])
    elif damage == "changed":
        data = bytearray(victim.read_bytes())
        data[-1] ^= 1
        victim.write_bytes(data)
    elif damage == "missing":
        victim.unlink()
    else:
        (newest / "manifest.json").write_text("{")
    warnings: list[str] = []
    assert latest_checkpoint(tmp_path, warnings.append).step == 5
    assert len(warnings) == 1
    assert "damaged" in warnings[0]
    assert (tmp_path / "damaged-step-0000010").is_dir()


def test_a_manifest_that_points_outside_is_refused(tmp_path: Path) -> None:
    folder = save(tmp_path / "run", 5)
    (tmp_path / "outside").write_text("x")
    manifest = json.loads((folder / "manifest.json").read_text())
    manifest["files"]["../../outside"] = {"size": 1, "sha256": ""}
    (folder / "manifest.json").write_text(json.dumps(manifest))
    with pytest.raises(BadInput, match="names a file outside the folder"):
        latest_checkpoint(tmp_path / "run", pytest.fail)


@pytest.mark.parametrize("error", ERRORS, ids=os.strerror)
def test_a_read_that_fails_is_no_damage(error: int, tmp_path: Path) -> None:
    """Every read of a resume fails in turn, once and for good: nothing is renamed, nothing begins anew."""
    for step in (5, 10, 15):
        save(tmp_path, step, keep=3)
    before = tree(tmp_path)
    with failing_reads(tmp_path, error, 0, 0) as reads:
        latest_checkpoint(tmp_path, pytest.fail)
    assert reads.count >= 12
    for first in range(1, reads.count + 1):
        with failing_reads(tmp_path, error, first, times=1):
            assert latest_checkpoint(tmp_path, pytest.fail).step == 15
        with (
            failing_reads(tmp_path, error, first, times=1000),
            pytest.raises(BadInput, match=rf"cannot be read \({os.strerror(error)}\); it may be intact"),
        ):
            latest_checkpoint(tmp_path, pytest.fail)
    assert tree(tmp_path) == before


def test_a_model_is_written_as_diffusers_does_whichever_read_fails_once(tmp_path: Path) -> None:
    """diffusers takes a folder that it cannot look at for a file: "File exists"."""
    for model in (MedSora(**tiny.DENOISER, in_channels=4), tiny_pipeline.tiny_vae()):
        model.save_pretrained(expected := tmp_path / type(model).__name__)
        (folder := tmp_path / "new").mkdir(exist_ok=True)
        with failing_reads(tmp_path, errno.ETIMEDOUT, 0, 0) as reads:
            save_model(model, folder)
        for first in range(1, reads.count + 1):
            with failing_reads(tmp_path, errno.ETIMEDOUT, first, times=1):
                save_model(model, folder)
            assert [path.read_bytes() for path in sorted(folder.iterdir())] == [
                path.read_bytes() for path in sorted(expected.iterdir())
            ]


def test_a_run_that_lost_every_checkpoint_never_begins_anew(tmp_path: Path) -> None:
    folders = [save(tmp_path, 5), save(tmp_path, 10)]
    for folder in folders:
        (folder / "model.safetensors").unlink()
    before = tree(tmp_path)
    for _ in range(2):
        with pytest.raises(BadInput, match=r"step-0000010: model.safetensors is missing; step-0000005: "):
            latest_checkpoint(tmp_path, pytest.fail)
    assert tree(tmp_path) == before
    for folder in folders:
        folder.rename(folder.with_name(f"damaged-{folder.name}"))  # as earlier versions did
    with pytest.raises(BadInput, match="damaged-step-0000010 was set aside"):
        latest_checkpoint(tmp_path, pytest.fail)


@pytest.mark.parametrize("keep_every", [None, 2])
def test_copies_that_a_user_keeps_beside_are_left_alone(keep_every: int | None, tmp_path: Path) -> None:
    copies = [tmp_path / name for name in ("step-0000001-backup", "step-best", ".my-step-notes")]
    for copy in copies:
        shutil.copytree(save(tmp_path, 1), copy)
    for step in (2, 3, 4):
        save(tmp_path, step, keep=1, keep_every=keep_every)
    assert latest_checkpoint(tmp_path, pytest.fail).step == 4
    assert all((copy / "manifest.json").is_file() for copy in copies)
    assert not (tmp_path / "step-0000001").exists()


def test_the_newest_is_found_by_its_number(tmp_path: Path) -> None:
    for step in (9_999_999, 10_000_000):
        save(tmp_path, step)
    assert latest_checkpoint(tmp_path, pytest.fail).step == 10_000_000


def test_old_checkpoints_go_but_every_nth_stays(tmp_path: Path) -> None:
    for step in range(1, 8):
        save(tmp_path, step, keep_every=3)
    assert [path.name for path in sorted(tmp_path.iterdir())] == [f"step-{step:07d}" for step in (3, 6, 7)]


def test_a_half_written_checkpoint_is_never_taken(tmp_path: Path) -> None:
    save(tmp_path, 5)

    def power_cut(folder: Path) -> None:
        (folder / "model.safetensors").write_bytes(b"half")
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        save_checkpoint(tmp_path, 6, power_cut, {"w": torch.zeros(1)}, {}, keep=2)
    assert latest_checkpoint(tmp_path, pytest.fail).step == 5
    assert save(tmp_path, 6).is_dir()


def test_a_full_disk_leaves_the_last_one_and_a_message(tmp_path: Path) -> None:
    save(tmp_path, 5)

    def full(folder: Path) -> None:
        raise OSError(28, "No space left on device")

    with pytest.raises(BadInput, match="No space left on device"):
        save_checkpoint(tmp_path, 6, full, {"w": torch.zeros(1)}, {}, keep=2)
    assert latest_checkpoint(tmp_path, pytest.fail).step == 5


def test_optimizer_state_round_trip_is_exact(tmp_path: Path) -> None:
    def make() -> tuple[torch.nn.Module, torch.optim.Optimizer, list[str]]:
        torch.manual_seed(0)
        model = torch.nn.Linear(4, 3)
        return model, torch.optim.AdamW(model.parameters(), lr=0.1), [n for n, _ in model.named_parameters()]

    def steps(model: torch.nn.Module, optimizer: torch.optim.Optimizer, count: int) -> None:
        for number in range(count):
            optimizer.zero_grad()
            model(torch.full((2, 4), 0.1 * number + 1)).square().sum().backward()
            optimizer.step()

    model, optimizer, names = make()
    steps(model, optimizer, 3)
    save_file(optimizer_tensors(optimizer, names), tmp_path / "optimizer.safetensors")
    other, other_optimizer, _ = make()
    other.load_state_dict(model.state_dict())
    restore_optimizer(other_optimizer, names, tmp_path / "optimizer.safetensors")
    steps(model, optimizer, 2)
    steps(other, other_optimizer, 2)
    assert all(torch.equal(a, b) for a, b in zip(model.parameters(), other.parameters(), strict=True))


def test_another_models_optimizer_is_refused(tmp_path: Path) -> None:
    save_file({"other/exp_avg": torch.zeros(3)}, tmp_path / "optimizer.safetensors")
    model = torch.nn.Linear(2, 1)
    with pytest.raises(BadInput, match="another model"):
        restore_optimizer(
            torch.optim.Adam(model.parameters()), ["weight", "bias"], tmp_path / "optimizer.safetensors"
        )


def test_another_versions_checkpoint_is_refused_and_stays(tmp_path: Path) -> None:
    folder = save(tmp_path, 5)
    manifest = json.loads((folder / "manifest.json").read_text())
    (folder / "manifest.json").write_text(json.dumps(manifest | {"format": 0}))
    with pytest.raises(
        BadInput, match=r"another version of MedSora \(checkpoint format 0, this one reads 1\)"
    ):
        latest_checkpoint(tmp_path, pytest.fail)
    assert folder.is_dir()


def test_the_first_versions_manifest_still_loads(tmp_path: Path) -> None:
    """Before the config and the code's digest were kept in it."""
    folder = save(tmp_path, 5)
    manifest = json.loads((folder / "manifest.json").read_text())
    assert {"config", "code_sha256", "versions"} <= manifest.keys()
    old = {key: manifest[key] for key in ("format", "files", "versions")}
    (folder / "manifest.json").write_text(json.dumps(old))
    assert latest_checkpoint(tmp_path, pytest.fail).step == 5


def test_what_a_kill_left_half_written_or_deleted_is_removed(tmp_path: Path) -> None:
    save(tmp_path, 5)
    for name in (".writing-step-0000006", ".dropping-step-0000004"):
        (tmp_path / name / "ema").mkdir(parents=True)
    assert latest_checkpoint(tmp_path, pytest.fail).step == 5
    assert [path.name for path in tmp_path.iterdir()] == ["step-0000005"]


def test_room_is_looked_for_before_anything_is_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("shutil.disk_usage", lambda path: type("Usage", (), {"free": 10_000_000}))
    with pytest.raises(BadInput, match="has 10 MiB free but a checkpoint needs 95 MiB"):
        save(tmp_path / "new", 1, model_bytes=100_000_000)
    assert not (tmp_path / "new").exists()


def test_what_is_saved_already_needs_no_more_room(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = save(tmp_path, 5)
    monkeypatch.setattr("shutil.disk_usage", lambda path: type("Usage", (), {"free": 0}))
    assert save(tmp_path, 5, model_bytes=100_000_000) == folder


@pytest.mark.parametrize("state", ["[]", '{"step": 4}', '{"step": "5"}', "{", "[" * 100_000])
def test_a_state_that_cannot_be_is_damage(state: str, tmp_path: Path) -> None:
    folder = save(tmp_path, 5)
    (folder / "state.json").write_text(state)
    manifest = json.loads((folder / "manifest.json").read_text())
    manifest["files"]["state.json"] = {"size": len(state), "sha256": sha256(folder / "state.json")}
    (folder / "manifest.json").write_text(json.dumps(manifest))
    with pytest.raises(BadInput, match=r"state\.json"):
        latest_checkpoint(tmp_path, pytest.fail)


def test_an_optimizer_whose_shapes_differ_is_refused(tmp_path: Path) -> None:
    model = torch.nn.Linear(2, 1, bias=False)
    moments = {"weight/step": torch.ones(()), "weight/exp_avg": torch.zeros(1, 2)}
    for other in (torch.zeros(2, 1), torch.zeros(1, 2, dtype=torch.int64)):
        save_file({**moments, "weight/exp_avg_sq": other}, tmp_path / "optimizer.safetensors")
        with pytest.raises(BadInput, match="state of weight does not fit"):
            restore_optimizer(
                torch.optim.Adam(model.parameters()), ["weight"], tmp_path / "optimizer.safetensors"
            )
