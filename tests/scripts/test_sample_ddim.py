"""medsora.sampling.run, medsora.sampling.synthetic: the sampling command: skipping, refusing to mix,
splitting over processes, stopping, bad input.
"""

from __future__ import annotations

import dataclasses
import json
import os
import resource
import shutil
import signal
import subprocess
import sys
import threading
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from diffusers import EulerDiscreteScheduler

import sample_ddim
from medsora.data.reading.decoding import UnreadableVideo
from medsora.data.reading.video_io import probe, read_frames
from medsora.errors import BadInput
from medsora.runtime.digests import sha256
from medsora.runtime.exit import exit_with_status
from medsora.runtime.files import write_json
from medsora.sampling import run as sampling_run
from medsora.sampling.pipeline import MedSoraPipeline
from medsora.sampling.run import BackgroundWriter, SamplingSettings, sample_videos
from medsora.sampling.synthetic import read_trained_on
from medsora.saved.find import find_model
from tests.support.paths import ROOT
from tests.support.patience import PATIENCE_S
from tests.support.tiny_pipeline import GEOMETRY, cut_in_half, tiny_pipeline, tiny_vae, write_run

WEIGHTS = "diffusion_pytorch_model.safetensors"


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_run(tmp_path_factory.mktemp("phantom") / "dit-tiny", steps=(10,))


@pytest.fixture
def sample(run: Path, tmp_path: Path) -> Callable[..., list[Path]]:
    """`sample(**changes)`: two videos of three steps in tmp_path/videos, in this process."""

    def go(**changes) -> list[Path]:
        given = {"model": str(run), "out": tmp_path / "videos", "num_videos": 2, "steps": 3, "seed": 7}
        return sample_videos(SamplingSettings(**given | changes))

    return go


def status_of(monkeypatch: pytest.MonkeyPatch, *arguments: object) -> int:
    """The exit status of the script, run in this process."""
    monkeypatch.setattr(sys, "argv", ["sample_ddim.py", *map(str, arguments)])
    with pytest.raises(SystemExit) as left:
        exit_with_status(sample_ddim.main)
    return left.value.code


def no_loading(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(MedSoraPipeline, "from_folder", lambda *a, **k: pytest.fail("loaded the model"))


# What is written


def test_videos_manifest_and_sheet(sample: Callable, run: Path, tmp_path: Path) -> None:
    paths = sample()
    out = tmp_path / "videos"
    assert paths == [out / "video-00000.mp4", out / "video-00001.mp4"]
    assert read_frames(paths[0]).shape == (8, 32, 16, 3)
    header = probe(paths[1])
    assert header.fps == 8
    assert "synthetic" in header.metadata["comment"]
    assert "seed 8" in header.metadata["comment"]
    manifest = json.loads((out / "manifest.json").read_text())
    assert manifest["videos"] == [
        {"file": "video-00000.mp4", "seed": 7, "sha256": sha256(paths[0])},
        {"file": "video-00001.mp4", "seed": 8, "sha256": sha256(paths[1])},
    ]
    assert manifest["synthetic"] is True
    assert manifest["step"] == 10
    assert manifest["settings"]["weights_sha256"] == find_model(run).digests()
    assert manifest["settings"]["steps"] == 3
    assert {"torch", "diffusers", "medsora"} <= manifest["versions"].keys()
    assert (out / "contact-sheet.png").is_file()
    assert sorted(path.name for path in out.iterdir() if path.name.startswith(".")) == []


def test_videos_carry_how_the_training_clips_were_read(tmp_path: Path) -> None:
    """In an mp4's tags, which go where the file goes, and in the manifest, for folders of frames."""
    trained_on = {"interval": 3, "rate": 8.5, "crop": "none"}
    run = write_run(tmp_path / "dit-tiny", steps=(10,))
    write_json(run / "pipeline.json", GEOMETRY | trained_on)
    for kind in ("mp4", "frames"):
        out = tmp_path / kind
        settings = SamplingSettings(model=str(run), out=out, num_videos=1, steps=1, format=kind)
        (path,) = sample_videos(settings)
        assert json.loads((out / "manifest.json").read_text())["trained_on"] == trained_on
        assert read_trained_on(path) == trained_on
    alone = shutil.copy(tmp_path / "mp4" / "video-00000.mp4", tmp_path / "moved.mp4")
    assert read_trained_on(Path(alone)) == trained_on


def test_a_flipped_bit_of_a_sampled_video_is_found(sample: Callable) -> None:
    """Also where the reader's process has read the whole file before."""
    path, other = sample()
    whole, content = read_frames(path), bytearray(path.read_bytes())
    content[-9] ^= 16
    path.write_bytes(content)
    with pytest.raises(UnreadableVideo, match=r"it does not match its checksum in manifest.json; delete it"):
        read_frames(path)
    assert read_frames(other).shape == whole.shape
    with pytest.raises(BadInput, match=r"video-00000.mp4: is damaged or was changed"):
        sample(num_videos=3)  # draws the sheet of all; more videos do not make it whole
    with pytest.raises(UnreadableVideo, match="does not match its checksum"):
        read_frames(path)
    path.unlink()
    (path,) = sample(num_videos=1)
    assert np.array_equal(read_frames(path), whole)
    (path.parent / "manifest.json").write_text('{"videos": [{"file": "video-00000.mp4"}, 3]}')
    assert np.array_equal(read_frames(path), whole)  # as earlier versions or other programs wrote it


def test_a_manifest_without_training_clips_is_no_error(sample: Callable, tmp_path: Path) -> None:
    (path, _) = sample()  # a run from before it was written down
    assert read_trained_on(path) == {}
    for text in ("[]", '{"trained_on": 3}', '{"trained_on": {"interval": -1}}'):
        (tmp_path / "videos" / "manifest.json").write_text(text)
        assert read_trained_on(path) == {}


def test_videos_have_the_rate_of_the_training_data(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    run = write_run(tmp_path / "dit-tiny", steps=(10,))
    settings = SamplingSettings(model=str(run), out=tmp_path / "old", num_videos=1, steps=1)
    assert probe(sample_videos(settings)[0]).fps == 8
    assert "does not store the frame rate of its training data" in caplog.text
    caplog.clear()
    (run / "pipeline.json").write_text(json.dumps(GEOMETRY | {"fps": 12.5, "rate": 12.5}))
    assert probe(sample_videos(dataclasses.replace(settings, out=tmp_path / "new"))[0]).fps == 12.5
    assert "frame rate" not in caplog.text


def test_folders_of_frames_hold_exactly_what_the_pipeline_gives(sample: Callable, run: Path) -> None:
    paths = sample(format="frames", fps=12, vae_dtype="fp32")
    pipeline = MedSoraPipeline.from_run(run)
    expected = pipeline(num_inference_steps=3, seeds=[7, 8], output_type="uint8").frames
    for path, video in zip(paths, expected, strict=True):
        assert np.array_equal(read_frames(path), video)


def test_the_vae_alone_in_bfloat16_gives_all_but_the_same(sample: Callable, tmp_path: Path) -> None:
    exact = sample(format="frames", num_videos=1, vae_dtype="fp32")
    half = sample(format="frames", num_videos=1, vae_dtype="bf16", out=tmp_path / "half")
    one, other = (read_frames(paths[0]).astype(int) for paths in (exact, half))
    assert 0 < np.abs(one - other).mean() < 1
    manifest = json.loads((tmp_path / "half" / "manifest.json").read_text())
    assert (manifest["settings"]["dtype"], manifest["settings"]["vae_dtype"]) == ("fp32", "bf16")


def test_auto_is_bfloat16_for_the_vae_on_a_gpu_that_has_it(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    settings = sampling_run.SamplingSettings(model="some", out=tmp_path)
    cpu, gpu = torch.device("cpu"), torch.device("cuda")
    for has, chosen in ((True, "bf16"), (False, "fp32")):
        monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda has=has: has)
        assert settings.on(gpu).vae_dtype == chosen
        assert settings.on(cpu).vae_dtype == "fp32"
        assert dataclasses.replace(settings, dtype="fp16").on(gpu).vae_dtype == "fp16"
        assert dataclasses.replace(settings, vae_dtype="fp32").on(gpu).vae_dtype == "fp32"


def test_auto_is_bfloat16_for_the_denoiser_where_it_is_faster(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    settings = sampling_run.SamplingSettings(model="some", out=tmp_path, dtype="auto")
    cpu, gpu = torch.device("cpu"), torch.device("cuda")
    monkeypatch.setattr(sampling_run, "bf16_problem", lambda device: None)
    chosen = settings.on(cpu), settings.on(gpu)
    assert [(each.dtype, each.vae_dtype) for each in chosen] == [("bf16", "fp32"), ("bf16", "bf16")]
    assert dataclasses.replace(settings, vae_dtype="fp16").on(gpu).vae_dtype == "fp16"
    assert not caplog.messages
    monkeypatch.setattr(sampling_run, "bf16_problem", lambda device: "it has none")
    for device in (cpu, gpu):
        assert (settings.on(device).dtype, settings.on(device).vae_dtype) == ("fp32", "fp32")
    assert set(caplog.messages) == {"sampling in fp32: it has none"}


def test_raw_weights_other_lengths_and_samplers(sample: Callable, tmp_path: Path) -> None:
    averaged = sample(format="frames", num_videos=1)
    raw = sample(format="frames", num_videos=1, raw=True, out=tmp_path / "raw")
    assert not np.array_equal(read_frames(averaged[0]), read_frames(raw[0]))
    other = sample(format="frames", num_videos=1, sampler="dpmpp", out=tmp_path / "dpmpp")
    assert not np.array_equal(read_frames(averaged[0]), read_frames(other[0]))
    short = sample(num_videos=1, frames=1, out=tmp_path / "short")
    assert read_frames(short[0]).shape == (1, 32, 16, 3)


def test_the_scheduler_of_a_saved_model_samples(sample: Callable, tmp_path: Path) -> None:
    pipeline, model = tiny_pipeline(), tmp_path / "model"
    pipeline.scheduler = EulerDiscreteScheduler.from_config(pipeline.scheduler.config)
    pipeline.save_pretrained(model)
    (path,) = sample(model=str(model), format="frames", num_videos=1, vae_dtype="fp32")
    expected = pipeline(num_inference_steps=3, seeds=[7], output_type="uint8").frames
    assert np.array_equal(read_frames(path), expected[0])
    settings = json.loads((tmp_path / "videos" / "manifest.json").read_text())["settings"]
    assert (settings["sampler"], settings["scheduler"]["beta_end"]) == ("EulerDiscreteScheduler", 0.02)
    with pytest.raises(BadInput, match="made with sampler EulerDiscreteScheduler, but now it is ddim"):
        sample(model=str(model), format="frames", num_videos=1, vae_dtype="fp32", sampler="ddim")
    with pytest.raises(BadInput, match="EulerDiscreteScheduler has none"):
        sample(model=str(model), eta=0.5, out=tmp_path / "other")


# The second start


def test_existing_videos_are_skipped_without_loading(
    sample: Callable, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = [path.stat().st_mtime_ns for path in sample()]
    no_loading(monkeypatch)
    assert [path.stat().st_mtime_ns for path in sample(batch_size=1)] == before


def test_only_missing_videos_are_made_and_more_can_be_requested(sample: Callable) -> None:
    first, second = sample(format="frames", num_videos=3)[:2]
    expected, kept = read_frames(second), first.stat().st_mtime_ns
    shutil.rmtree(second)
    assert len(sample(format="frames", num_videos=2)) == 2
    assert first.stat().st_mtime_ns == kept
    assert np.abs(read_frames(second).astype(int) - expected).max() <= 1
    assert len(json.loads((first.parent / "manifest.json").read_text())["videos"]) == 3
    assert all(path.exists() for path in sample(format="frames", num_videos=4))


def test_other_settings_never_mix(sample: Callable, run: Path, tmp_path: Path) -> None:
    sample(num_videos=1)
    for change in ({"steps": 4}, {"seed": 8}, {"eta": 0.5}, {"raw": True}, {"frames": 9}, {"fps": 9}):
        with pytest.raises(BadInput, match="take another --out"):
            sample(num_videos=1, **change)
    tiny_pipeline().save_pretrained(tmp_path / "other")
    with pytest.raises(BadInput, match="weights_sha256"):
        sample(num_videos=1, model=str(tmp_path / "other"))
    (tmp_path / "videos" / "manifest.json").unlink()
    with pytest.raises(BadInput, match="no manifest"):
        sample(num_videos=1)


def test_a_manifest_without_videos_binds_nobody(sample: Callable, tmp_path: Path) -> None:
    (path,) = sample(num_videos=1)
    path.unlink()
    sample(num_videos=1, steps=2)
    assert json.loads((tmp_path / "videos" / "manifest.json").read_text())["settings"]["steps"] == 2


def test_videos_are_not_mixed_among_recordings(sample: Callable, tmp_path: Path) -> None:
    out = tmp_path / "videos"
    out.mkdir()
    for name in ("b.MP4", "a.avi"):
        (out / name).write_bytes(b"a recording")
    with pytest.raises(BadInput, match=r"holds 2 videos not generated here, such as a.avi"):
        sample(num_videos=1)
    assert sorted(path.name for path in out.iterdir()) == ["a.avi", "b.MP4"]
    (out / "a.avi").unlink()
    (out / "b.MP4").rename(tmp_path / "film.mp4")
    sample(num_videos=1)
    (tmp_path / "film.mp4").rename(out / "film.mp4")  # beside a manifest it is the user's wish
    assert all(path.exists() for path in sample(num_videos=2))


def test_a_manifest_that_is_none_is_refused(sample: Callable, tmp_path: Path) -> None:
    sample(num_videos=1)
    for text in ("{", "[]", '{"settings": 3, "videos": []}'):
        (tmp_path / "videos" / "manifest.json").write_text(text)
        with pytest.raises(BadInput, match="is not a sampling manifest"):
            sample(num_videos=1)


def test_an_interrupted_run_keeps_what_is_finished_and_goes_on(
    sample: Callable,
    run: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture,
) -> None:
    add = sampling_run.BackgroundWriter.add

    def add_and_interrupt(writing: sampling_run.BackgroundWriter, *batch) -> None:
        add(writing, *batch)
        writing.thread.shutdown(wait=True)  # the first video is whole before the signal comes
        os.kill(os.getpid(), signal.SIGTERM)

    out = tmp_path / "videos"
    arguments = ("--model", run, "--out", out, "--num-videos", 2, "--steps", 3, "--batch-size", 1)
    with monkeypatch.context() as patch:
        patch.setattr(sampling_run.BackgroundWriter, "add", add_and_interrupt)
        assert status_of(patch, *arguments) == 75
    assert "received SIGTERM" in capsys.readouterr().err
    assert sorted(path.name for path in out.iterdir()) == ["manifest.json", "video-00000.mp4"]
    finished = (out / "video-00000.mp4").stat().st_mtime_ns
    sample(seed=0)
    assert (out / "video-00000.mp4").stat().st_mtime_ns == finished
    assert (out / "video-00001.mp4").is_file()


# Several processes


def test_two_processes_make_the_videos_of_one(sample: Callable, run: Path, tmp_path: Path) -> None:
    alone = sample(num_videos=3, format="frames")
    out = tmp_path / "shared"
    launcher = ("-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2")
    arguments = ("--model", run, "--out", out, "--num-videos", "3", "--steps", "3", "--seed", "7")
    done = subprocess.run(
        [sys.executable, *launcher, "sample_ddim.py", *map(str, arguments), "--format", "frames"],
        cwd=ROOT,
        env={**os.environ, "ACCELERATE_USE_CPU": "true", "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        timeout=PATIENCE_S,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    for path in alone:
        together = read_frames(out / path.name)
        assert np.abs(together.astype(int) - read_frames(path)).max() <= 1
    manifest = json.loads((out / "manifest.json").read_text())
    assert manifest["processes"] == 2
    assert (out / "contact-sheet.png").is_file()


# Bad input


def test_bad_input_is_one_sentence_and_status_2(
    run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    a_file = tmp_path / "file"
    a_file.write_text("no folder")
    other_vae = shutil.copytree(run, tmp_path / "other-vae")
    shutil.rmtree(other_vae / "vae")
    tiny_vae(latent_channels=8).save_pretrained(other_vae / "vae")
    cut = shutil.copytree(run, tmp_path / "cut")
    cut_in_half(cut / "checkpoints" / "step-0000010" / "ema" / WEIGHTS)
    no_vae = shutil.copytree(run, tmp_path / "no-vae")
    (no_vae / "vae" / WEIGHTS).unlink()
    for arguments, words in (
        (("--num-videos", 0), "num_videos must be at least 1"),
        (("--batch-size", 0), "batch_size must be at least 1"),
        (("--steps", 0), "choose 1 to 1000"),
        (("--eta", 2), "eta must lie between 0 and 1"),
        (("--eta", 0.5, "--sampler", "dpmpp"), "unless the sampler is ddim"),
        (("--seed", -1), "seed"),
        (("--fps", 0), "fps"),
        (("--frames", 10), "valid counts are 9 and 16"),
        (("--model", tmp_path / "missing"), "there is no folder"),
        (("--model", tmp_path), "neither a run nor a saved pipeline"),
        (("--model", other_vae), "is not the VAE that the denoiser was trained with"),
        (("--model", cut), "no complete checkpoint"),
        (("--model", no_vae), f"vae/{WEIGHTS} is missing"),
        (("--out", a_file / "videos"), "take another --out"),
        (("--out", a_file), f"--out {a_file} is a file, but a folder is wanted"),
    ):
        given = ("--model", run, "--out", tmp_path / "videos", "--steps", 2)
        assert status_of(monkeypatch, *given, *arguments) == 2
        err = capsys.readouterr().err
        (line,) = [line for line in err.splitlines() if line.startswith("error: ")]
        assert words in line
        assert "Traceback" not in err


def test_a_video_that_is_not_finite_is_one_sentence_and_status_1(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    pipeline, out = tiny_pipeline(), tmp_path / "videos"
    pipeline.vae.base.decoder.conv_out.conv.bias.data.fill_(torch.inf)
    pipeline.save_pretrained(tmp_path / "model")
    arguments = ("--model", tmp_path / "model", "--out", out, "--num-videos", 1, "--steps", 1, "--seed", 7)
    assert status_of(monkeypatch, *arguments) == 1
    err = capsys.readouterr().err
    assert "error: the frames of seed 7 are NaN or infinite" in err
    assert "Traceback" not in err
    assert [path.name for path in out.iterdir()] == ["manifest.json"]


@pytest.mark.parametrize("kind", ["mp4", "frames"])
def test_a_full_disk_is_one_sentence_and_leaves_no_half_video(
    kind: str, run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    out = tmp_path / "videos"
    arguments = ("--model", run, "--out", out, "--num-videos", 1, "--steps", 1, "--format", kind)
    write, (soft, hard) = sampling_run._write, resource.getrlimit(resource.RLIMIT_FSIZE)

    def write_without_room(*given) -> None:
        resource.setrlimit(resource.RLIMIT_FSIZE, (200, hard))
        try:
            write(*given)
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))

    monkeypatch.setattr(sampling_run, "_write", write_without_room)
    assert status_of(monkeypatch, *arguments) == 2
    assert "cannot be written" in capsys.readouterr().err
    assert [path.name for path in out.iterdir()] == ["manifest.json"]


def test_the_command_lines_defaults_are_those_of_the_settings(tmp_path: Path) -> None:
    parser = sample_ddim.make_parser()
    options = {action.dest: action for action in parser._actions if action.dest != "help"}
    fields = {field.name: field for field in dataclasses.fields(SamplingSettings)}
    assert options.keys() == fields.keys()
    for name, field in fields.items():
        if field.default is None:
            assert "(default: " in options[name].help
        elif field.default not in (dataclasses.MISSING, False):
            assert f"(default: {field.default})" in options[name].help
        for choice in options[name].choices or ():
            SamplingSettings(model="m", out=tmp_path, **{name: choice})


def test_a_batch_is_written_while_the_next_is_sampled() -> None:
    may_write, written = threading.Event(), []

    def write(number: int, video: str) -> None:
        assert may_write.wait(timeout=PATIENCE_S)
        written.append((number, video))

    with BackgroundWriter(write) as writing:
        writing.add([0, 1], ["a", "b"])
        assert not written, "nobody waits for the writer"
        may_write.set()
        writing.add([2], ["c"])
        assert written[:2] == [(0, "a"), (1, "b")], "at most one batch waits to be written"
    assert written == [(0, "a"), (1, "b"), (2, "c")]


def test_what_the_writer_meets_is_raised_at_the_end() -> None:
    def write(number: int, video: str) -> None:
        raise OSError("the disk is full")

    with pytest.raises(BadInput, match="the disk is full"), BackgroundWriter(write) as writing:
        writing.add([0], ["a"])
