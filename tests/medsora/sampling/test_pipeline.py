"""medsora.sampling.pipeline, medsora.sampling.arguments, medsora.saved.pipeline, medsora.saved.find: one
seed, one video; saved and loaded without a change; damage named.
"""

from __future__ import annotations

import json
import logging
import re
from pathlib import Path

import numpy as np
import pytest
import torch
from diffusers.training_utils import EMAModel
from torch import Tensor

from medsora.denoiser import MedSora, MedSoraOutput
from medsora.errors import BadInput
from medsora.runtime.files import write_json
from medsora.sampling.pipeline import MedSoraPipeline
from medsora.saved import find as model_folder
from medsora.saved.find import find_model
from medsora.saved.manifest import MANIFEST
from tests.medsora.test_sampler import MU, S, exact_eps
from tests.support.tiny_pipeline import (
    GEOMETRY,
    cut_in_half,
    tiny_denoiser,
    tiny_pipeline,
    tiny_vae,
    write_checkpoint,
    write_run,
)

WEIGHTS = "diffusion_pytorch_model.safetensors"


@pytest.fixture(scope="module")
def pipeline() -> MedSoraPipeline:
    return tiny_pipeline()


@pytest.fixture
def saved(pipeline: MedSoraPipeline, tmp_path: Path) -> Path:
    pipeline.save_pretrained(tmp_path / "model")
    return tmp_path / "model"


def levels_apart(a: np.ndarray, b: np.ndarray) -> int:
    return int(np.abs(a.astype(int) - b.astype(int)).max())


def weights_of(pipeline: MedSoraPipeline) -> Tensor:
    return torch.cat([parameter.detach().flatten() for parameter in pipeline.denoiser.parameters()])


# Sampling


def test_frames_are_uint8_videos_of_the_trained_size(pipeline: MedSoraPipeline) -> None:
    out = pipeline(num_videos=2, num_inference_steps=2, seeds=[3, 4], output_type="uint8")
    assert out.frames.shape == (2, 8, 32, 16, 3)
    assert out.frames.dtype == np.uint8
    assert out.seeds == [3, 4]
    assert levels_apart(out.frames[0], out.frames[1]) > 10


@pytest.mark.parametrize(
    ("sampler", "eta"), [("ddim", 0.0), ("ddim", 0.7), ("dpmpp", 0.0), ("unipc", 0.0), ("ddpm", 0.0)]
)
def test_a_seed_gives_the_same_video_at_any_batch_size(
    pipeline: MedSoraPipeline, sampler: str, eta: float
) -> None:
    settings = {"num_inference_steps": 6, "sampler": sampler, "eta": eta, "output_type": "uint8"}
    together = pipeline(seeds=[5, 6, 7], batch_size=3, **settings).frames
    for batch_size in (1, 2):
        assert (
            levels_apart(together, pipeline(seeds=[5, 6, 7], batch_size=batch_size, **settings).frames) <= 1
        )
    assert levels_apart(together[2:], pipeline(seeds=[7], **settings).frames) <= 1


def test_a_generator_draws_the_seeds(pipeline: MedSoraPipeline) -> None:
    def run(**given) -> np.ndarray:
        return pipeline(num_videos=2, num_inference_steps=2, **given)

    first = run(generator=torch.Generator().manual_seed(1))
    again = run(generator=torch.Generator().manual_seed(1))
    other = run(generator=torch.Generator().manual_seed(2))
    assert first.seeds == again.seeds != other.seeds
    assert np.array_equal(first.frames, again.frames)
    assert np.array_equal(first.frames, run(seeds=first.seeds).frames)
    torch.manual_seed(3)
    unnamed = run().seeds
    torch.manual_seed(3)
    assert run().seeds == unnamed


def test_latents_follow_the_denoiser(pipeline: MedSoraPipeline, monkeypatch: pytest.MonkeyPatch) -> None:
    """With the exact denoiser of N(MU, S²) the latents come out so distributed."""

    def forward(z: Tensor, t: Tensor, **_: object) -> MedSoraOutput:
        return MedSoraOutput(eps=exact_eps(z, t), variance=torch.full_like(z, torch.nan))

    monkeypatch.setattr(pipeline.denoiser, "forward", forward)
    out = pipeline(num_videos=40, seeds=range(40), batch_size=40, output_type="latent")
    assert out.frames.shape == (40, 2, 4, 4, 2)
    assert float(out.frames.mean()) == pytest.approx(MU, abs=0.02)
    assert float(out.frames.std()) == pytest.approx(S, rel=0.06)


@pytest.mark.parametrize(("mixing", "images"), [("isolated", 0), ("mixed", 2)])
def test_only_a_mixed_denoiser_gets_image_latents(
    mixing: str, images: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    pipeline = tiny_pipeline(mixing=mixing)
    forward, seen = pipeline.denoiser.forward, []

    def watched(z: Tensor, t: Tensor, num_images: int, **options: object) -> MedSoraOutput:
        seen.append((z.shape[1], num_images))
        return forward(z, t, num_images, **options)

    monkeypatch.setattr(pipeline.denoiser, "forward", watched)
    states = []
    out = pipeline(
        num_inference_steps=2, seeds=[0], output_type="latent", callback=lambda *step: states.append(step[2])
    )
    assert seen == [(2 + images, images)] * 2
    assert torch.equal(out.frames, states[-1][:, :2])


def test_dropout_is_off_while_sampling_and_training_goes_on_afterwards(pipeline: MedSoraPipeline) -> None:
    expected = pipeline(num_inference_steps=3, seeds=[0]).frames
    pipeline.denoiser.train()
    assert np.array_equal(pipeline(num_inference_steps=3, seeds=[0]).frames, expected)
    assert pipeline.denoiser.training
    pipeline.denoiser.eval()


def test_a_few_videos_are_decoded_at_a_time(
    pipeline: MedSoraPipeline, monkeypatch: pytest.MonkeyPatch
) -> None:
    decode, sizes = pipeline.vae.base.decode, []

    def watched(z: Tensor) -> Tensor:
        sizes.append(len(z))
        return decode(z)

    monkeypatch.setattr(pipeline.vae.base, "decode", watched)
    pipeline(num_inference_steps=1, seeds=list(range(6)))
    assert sum(sizes) == 6
    assert max(sizes) <= 4


def test_other_clip_lengths_and_sizes(pipeline: MedSoraPipeline) -> None:
    assert pipeline(num_inference_steps=1, frames=9, size=(16, 48)).frames.shape == (1, 9, 16, 48, 3)
    with pytest.raises(ValueError, match="9 and 16"):
        pipeline(frames=10)
    with pytest.raises(ValueError, match="height 40"):
        pipeline(size=(40, 32))


def test_the_callback_sees_every_step_of_every_batch(pipeline: MedSoraPipeline) -> None:
    seen = []
    pipeline(num_inference_steps=2, seeds=[0, 1, 2], batch_size=2, callback=lambda *a: seen.append(a[:2]))
    assert seen == [(0, 999), (1, 499)] * 2


def write_in_place(model: MedSora, other: MedSora) -> None:
    with torch.no_grad():
        for parameter, value in zip(model.parameters(), other.parameters(), strict=True):
            parameter.copy_(value)


def write_through_data(model: MedSora, other: MedSora) -> None:
    for parameter, value in zip(model.parameters(), other.parameters(), strict=True):
        parameter.data.copy_(value.data)


def assign_data(model: MedSora, other: MedSora) -> None:
    for parameter, value in zip(model.parameters(), other.parameters(), strict=True):
        parameter.data = value.data.clone()


WEIGHT_CHANGES = {
    "in place": write_in_place,
    "data.copy_": write_through_data,
    "data =": assign_data,
    "EMAModel.copy_to": lambda model, other: EMAModel(other.parameters()).copy_to(model.parameters()),
    "load_state_dict": lambda model, other: model.load_state_dict(other.state_dict()),
    "load_state_dict, assign": lambda model, other: model.load_state_dict(other.state_dict(), assign=True),
    "to": lambda model, other: model.to(torch.bfloat16).load_state_dict(other.state_dict()),
}


@pytest.mark.parametrize("change", WEIGHT_CHANGES)
def test_weights_that_changed_since_the_last_call_are_noticed(change: str) -> None:
    options = {"num_inference_steps": 2, "seeds": [0], "output_type": "latent"}
    pipeline, other = tiny_pipeline(), tiny_denoiser(seed=3)
    with torch.inference_mode():
        before = pipeline(**options).frames
    prepared = pipeline._prepared
    assert torch.equal(pipeline(**options).frames, before)
    assert pipeline._prepared is prepared
    WEIGHT_CHANGES[change](pipeline.denoiser, other)
    fresh = MedSoraPipeline(other.to(pipeline.denoiser.dtype), pipeline.vae, **GEOMETRY)(**options).frames
    assert torch.equal(pipeline(**options).frames, fresh)
    assert not torch.equal(fresh, before)


def test_bad_requests_are_one_sentence(pipeline: MedSoraPipeline) -> None:
    for given, match in (
        ({"num_videos": 0}, "the minimum is 1"),
        ({"num_videos": 2, "seeds": [1]}, "one per video"),
        ({"seeds": []}, "one per video"),
        ({"seeds": [1], "generator": torch.Generator()}, "not both"),
        ({"batch_size": 0}, "batch size"),
        ({"output_type": "gif"}, "choose np, uint8, pil, pt, latent"),
        ({"num_videos": 3, "generator": [torch.Generator()] * 2}, "2 generators do not fit 3"),
        ({"guidance": 2.0, "guidance_scale": 3.0}, "older name"),
        ({"callback_on_step_end_tensor_inputs": ["prompt_embeds"]}, "not prompt_embeds"),
        ({"sampler": "euler"}, "ddim or dpmpp"),
        ({"compile": "fast"}, "auto, on, off"),
        ({"num_inference_steps": 0}, "1 to 1000"),
        ({"num_inference_steps": 2.5}, "num_inference_steps must be a whole number, not 2.5"),
        ({"num_videos": 1.5}, "num_videos must be a whole number"),
        ({"batch_size": "8"}, "batch_size must be a whole number, not '8'"),
        ({"frames": 8.0}, "frames must be a whole number"),
        ({"seeds": [1.5]}, "seed must be a whole number"),
        ({"seeds": [1, 2**64]}, "a seed must lie between .* not 18446744073709551616"),
        ({"size": "64"}, "not one whole number or"),
        ({"size": [64]}, "not one whole number or"),
        ({"size": (64, 64.5)}, "width must be a whole number"),
        ({"guidance_scale": "2"}, "guidance_scale must be a number"),
        ({"eta": "0"}, "eta must be a number"),
        ({"generator": [0, 1]}, "generator must be a torch.Generator"),
        ({"size": 64.0}, "not one whole number or"),
        ({"size": torch.tensor(64.5)}, "not one whole number or"),
        ({"seeds": 1.5}, "seeds must be whole numbers, not 1.5"),
        ({"seeds": "12"}, "seeds must be whole numbers"),
        ({"batch_size": None}, "batch_size must be a whole number, not None"),
        ({"eta": None}, "eta must be a number, not None"),
        ({"guidance_scale": 10**400}, "guidance_scale must be a number"),
        ({"callback_on_step_end": lambda *_: "latents"}, "must return a dict of latents, or nothing"),
        ({"callback_on_step_end_tensor_inputs": "prompt"}, "not prompt"),
    ):
        with pytest.raises(BadInput, match=match):
            pipeline(**given)
    for whole in (np.int64(1), torch.tensor(1)):
        assert pipeline(whole, whole, seeds=[whole], size=(np.int32(16), 16)).seeds == [1]
        assert pipeline(1, 1, seeds=whole, size=torch.tensor(16)).seeds == [1]


def test_tiling_and_slicing_are_refused_in_one_sentence(pipeline: MedSoraPipeline) -> None:
    for method in (pipeline.vae.enable_tiling, pipeline.vae.enable_slicing):
        with pytest.raises(ValueError, match="not supported"):
            method()


# Saving and loading


def test_saved_and_loaded_it_samples_the_same(pipeline: MedSoraPipeline, saved: Path) -> None:
    loaded = MedSoraPipeline.from_pretrained(saved)
    assert np.array_equal(
        loaded(num_inference_steps=3, seeds=[1]).frames, pipeline(num_inference_steps=3, seeds=[1]).frames
    )
    assert {key: loaded.config[key] for key in GEOMETRY} == GEOMETRY
    assert not loaded.denoiser.training
    assert {path.suffix for path in saved.rglob("*") if path.is_file()} == {".json", ".safetensors"}


def test_half_precision_is_close(pipeline: MedSoraPipeline, saved: Path) -> None:
    half = MedSoraPipeline.from_pretrained(saved, dtype=torch.bfloat16)
    assert half.denoiser.dtype == half.vae.dtype == torch.bfloat16
    settings = {"num_inference_steps": 2, "seeds": [1], "output_type": "latent"}
    exact, found = pipeline(**settings).frames, half(**settings).frames
    assert found.dtype == torch.float32
    assert (found - exact).norm() < 0.1 * exact.norm()
    assert half(num_inference_steps=1).frames.dtype == np.float32


def test_the_saved_noise_schedule_is_the_one_that_samples(pipeline: MedSoraPipeline, saved: Path) -> None:
    config = saved / "scheduler" / "scheduler_config.json"
    config.write_text(config.read_text().replace("0.02", "0.01"))
    (saved / MANIFEST).unlink()  # the change is meant
    other = MedSoraPipeline.from_pretrained(saved)
    settings = {"num_inference_steps": 3, "seeds": [1], "output_type": "uint8"}
    assert levels_apart(other(**settings).frames, pipeline(**settings).frames) > 1


def test_a_hub_name_is_downloaded_without_pickles(saved: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    patterns = {}

    def download(name: str, allow_patterns: list[str]) -> str:
        patterns[name] = allow_patterns
        return str(saved)

    monkeypatch.setattr(model_folder, "snapshot_download", download)
    MedSoraPipeline.from_pretrained("somebody/medsora-colon")
    assert patterns == {"somebody/medsora-colon": ["*.json", "*.safetensors"]}


def test_a_hub_name_that_cannot_be_had_names_both_ways(monkeypatch: pytest.MonkeyPatch) -> None:
    def download(name: str, allow_patterns: list[str]) -> str:
        raise ConnectionError("no network\nmany\nlines")

    monkeypatch.setattr(model_folder, "snapshot_download", download)
    with pytest.raises(BadInput, match=r"(?=.*no network)(?=.*run folder)(?=.*hub)") as caught:
        MedSoraPipeline.from_pretrained("somebody/medsora-colon")
    assert "\n" not in str(caught.value)


def test_a_mistyped_path_never_contacts_the_hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(model_folder, "snapshot_download", lambda *a, **k: pytest.fail("used the hub"))
    monkeypatch.chdir(tmp_path)
    (tmp_path / "runs").mkdir()
    for name in ("runs/phantmo", "nowhere", str(tmp_path / "a" / "b")):
        with pytest.raises(BadInput, match="there is no folder"):
            MedSoraPipeline.from_pretrained(name)


@pytest.mark.parametrize("part", ["denoiser", "vae"])
def test_damaged_files_are_named(saved: Path, part: str) -> None:
    weights, config = saved / part / WEIGHTS, saved / part / "config.json"
    cut_in_half(weights)
    with pytest.raises(BadInput, match=f"{part}/{WEIGHTS} is not a complete"):
        MedSoraPipeline.from_pretrained(saved)
    weights.rename(weights.with_suffix(".bin"))
    with pytest.raises(BadInput, match=f"{part}/{WEIGHTS} is missing"):
        MedSoraPipeline.from_pretrained(saved)
    cut_in_half(config)
    with pytest.raises(BadInput, match=f"{part}/config.json is not JSON"):
        MedSoraPipeline.from_pretrained(saved)
    config.unlink()
    with pytest.raises(BadInput, match=f"{part}/config.json cannot be read"):
        MedSoraPipeline.from_pretrained(saved)


def test_settings_that_cannot_be_computed_with_are_refused(saved: Path) -> None:
    path = saved / "denoiser" / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"heads": 0}))
    with pytest.raises(BadInput, match="heads is 0 but must lie between 1 and 1024"):
        MedSoraPipeline.from_pretrained(saved)


def test_missing_or_foreign_parts_are_named(saved: Path) -> None:
    scheduler = saved / "scheduler"
    scheduler.rename(saved / "elsewhere")
    with pytest.raises(BadInput, match="scheduler"):
        MedSoraPipeline.from_pretrained(saved)
    index = saved / "model_index.json"
    whole = index.read_text()
    index.write_text(whole.replace('"fps"', '"speed"'))
    with pytest.raises(BadInput, match=r"model_index.json has no fps of the clip"):
        MedSoraPipeline.from_pretrained(saved)
    index.write_text(whole.replace("MedSoraPipeline", "CogVideoXPipeline"))
    with pytest.raises(BadInput, match="describes 'CogVideoXPipeline'"):
        MedSoraPipeline.from_pretrained(saved)
    index.unlink()
    with pytest.raises(BadInput, match="neither a run nor a saved pipeline"):
        MedSoraPipeline.from_pretrained(saved)


def test_weights_of_another_size_are_refused(saved: Path, tmp_path: Path) -> None:
    for overrides in ({"depth": 3}, {"depth": 1}, {"width": 64}):
        tiny_denoiser(**overrides).save_pretrained(tmp_path / "other")
        (saved / "denoiser" / WEIGHTS).write_bytes((tmp_path / "other" / WEIGHTS).read_bytes())
        with pytest.raises(BadInput, match="denoiser"):
            MedSoraPipeline.from_pretrained(saved)


def test_latent_channels_must_agree(saved: Path) -> None:
    with pytest.raises(BadInput, match="4 latent channels but the VAE has 8"):
        MedSoraPipeline(tiny_denoiser(), tiny_vae(latent_channels=8))
    tiny_vae(latent_channels=8).save_pretrained(saved / "vae")
    (saved / MANIFEST).unlink()
    with pytest.raises(BadInput, match="4 latent channels but the VAE has 8"):
        MedSoraPipeline.from_pretrained(saved)


# Run folders


@pytest.fixture
def run(tmp_path: Path) -> Path:
    return write_run(tmp_path / "phantom" / "dit-tiny")


def holds(pipeline: MedSoraPipeline, denoiser: MedSora) -> bool:
    expected = torch.cat([parameter.detach().flatten() for parameter in denoiser.parameters()])
    return torch.equal(weights_of(pipeline), expected)


def test_a_run_gives_its_newest_averaged_weights(run: Path) -> None:
    assert holds(MedSoraPipeline.from_run(run), tiny_denoiser(11))
    assert holds(MedSoraPipeline.from_pretrained(run), tiny_denoiser(11))
    assert holds(MedSoraPipeline.from_run(run, raw=True), tiny_denoiser(10))
    for name in (5, "step-0000005"):
        assert holds(MedSoraPipeline.from_run(run, checkpoint=name), tiny_denoiser(6))


def test_a_run_can_be_exported(run: Path, tmp_path: Path) -> None:
    from_run = MedSoraPipeline.from_run(run)
    from_run.save_pretrained(tmp_path / "exported")
    exported = MedSoraPipeline.from_pretrained(tmp_path / "exported")
    assert torch.equal(weights_of(exported), weights_of(from_run))
    assert exported.trained_on == {}  # a run from before it was written down


def test_an_exported_run_reports_how_its_training_clips_were_read(run: Path, tmp_path: Path) -> None:
    trained_on = {"interval": 3, "rate": 8.5, "crop": [0.25, 0, 0, 0.5]}
    write_json(run / "pipeline.json", GEOMETRY | trained_on)
    MedSoraPipeline.from_run(run).save_pretrained(tmp_path / "exported")
    assert MedSoraPipeline.from_pretrained(tmp_path / "exported").trained_on == trained_on
    assert find_model(tmp_path / "exported").trained_on == trained_on


@pytest.mark.parametrize(
    ("key", "value"), [("interval", 0), ("interval", "3"), ("rate", -1), ("crop", "black"), ("crop", [1])]
)
def test_training_clips_that_cannot_have_been_read_so_are_refused(run: Path, key: str, value: object) -> None:
    write_json(run / "pipeline.json", GEOMETRY | {key: value})
    with pytest.raises(BadInput, match=rf"pipeline\.json .*{key} is {re.escape(repr(value))} but must be"):
        find_model(run)


@pytest.mark.parametrize("damage", ["cut", "changed", "missing", "manifest", "no manifest"])
def test_a_damaged_checkpoint_is_passed_over_with_one_warning(
    run: Path, damage: str, caplog: pytest.LogCaptureFixture
) -> None:
    newest = run / "checkpoints" / "step-0000010"
    victim = newest / "ema" / WEIGHTS
    if damage == "cut":
        cut_in_half(victim)
    elif damage == "changed":
        data = victim.read_bytes()
        victim.write_bytes(data[:-1] + bytes([data[-1] ^ 1]))
    elif damage == "missing":
        victim.unlink()
    elif damage == "manifest":
        cut_in_half(newest / "manifest.json")
    else:
        (newest / "manifest.json").unlink()
    with caplog.at_level(logging.WARNING):
        assert find_model(run).step == 5
    assert len(caplog.records) == 1
    assert "taking step-0000005" in caplog.text
    assert "step-0000010" in caplog.text
    with pytest.raises(BadInput, match="no complete checkpoint"):
        find_model(newest)


def test_a_run_without_a_complete_checkpoint_is_refused(tmp_path: Path) -> None:
    run = write_run(tmp_path / "dit-tiny", steps=())
    with pytest.raises(BadInput, match="no checkpoint yet"):
        find_model(run)
    cut_in_half(write_checkpoint(run, 3) / "ema" / WEIGHTS)
    with pytest.raises(BadInput, match=f"no complete checkpoint .step-0000003: ema/{WEIGHTS} has"):
        find_model(run)


def test_every_kind_of_name_is_found(run: Path, saved: Path) -> None:
    assert find_model(run).weights == "ema"
    assert find_model(run, raw=True).denoiser.name == "denoiser"
    assert find_model(run / "checkpoints" / "step-0000005").step == 5
    assert find_model(saved).geometry == GEOMETRY
    with pytest.raises(BadInput, match="one set of weights"):
        find_model(saved, raw=True)
    with pytest.raises(BadInput, match=r"did you mean .*dit-tiny\?"):
        find_model(run.parent)


def test_the_digests_name_the_weights(run: Path, saved: Path) -> None:
    averaged, raw = find_model(run).digests(), find_model(run, raw=True).digests()
    assert averaged["denoiser"] != raw["denoiser"]
    assert averaged["vae"] == raw["vae"]
    assert find_model(saved).digests().keys() == averaged.keys()
