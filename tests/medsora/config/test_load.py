"""medsora.config.load, medsora.config.checks: every shipped config loads; whatever is wrong with one is
answered with one sentence that names the key.
"""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace

import pytest
import timm
import torch

from medsora.config.load import config_from_dict, config_to_dict, load_config, save_config
from medsora.config.schema import all_keys
from medsora.data.checking.windows import clip_span
from medsora.errors import BadInput
from medsora.flow_prior.dino import build_network
from medsora.training.ar.build import build_transformer
from medsora.training.schedule import Schedule
from medsora.training.stage1.build import build_vae
from medsora.training.stage2.build import build_denoiser, token_grid
from medsora.vae import FrequencyCompensatedVAE, PerFrameVAE
from medsora.vae.base import load_base
from tests.support.paths import ROOT

CONFIGS = sorted((ROOT / "configs").glob("*.yaml"))
PHANTOM = ROOT / "configs" / "phantom.yaml"
CUT_BY_YAML = ["clips #2", "(P[0-9]+) #", "&a", "!videos", "[PQ]([0-9]+)_", "a: b"]
CHANGED_BY_YAML = ["2024_01", "1e3", "yes", "0x10"]
VAES = {"causal": FrequencyCompensatedVAE, "per-frame": PerFrameVAE}
CHANNELS = {"causal": 16, "per-frame": 4}  # the base that is fetched from the hub


@pytest.mark.parametrize("path", CONFIGS, ids=lambda path: path.stem)
def test_shipped_configs_load_and_round_trip(path: Path, tmp_path: Path) -> None:
    config = load_config(path)
    assert config_from_dict(config_to_dict(config), "again") == config
    save_config(config, tmp_path / "config.yaml")
    assert load_config(tmp_path / "config.yaml") == config


@pytest.mark.parametrize("path", CONFIGS, ids=lambda path: path.stem)
def test_shipped_configs_hold_relative_paths_only(path: Path) -> None:
    values = config_to_dict(load_config(path))
    strings = [value for section in values.values() for value in section.values() if isinstance(value, str)]
    assert not [value for value in strings if value.startswith(("/", "~")) or ".." in value]


def test_the_shipped_tokenizer_s_config_can_be_built() -> None:
    config = load_config(ROOT / "configs" / "phantom_tokenizer.yaml")
    tokenizer = build_vae(config)
    tokenizer.check_video_shape(config.data.frames, *config.data.height_width)
    assert (tokenizer.num_codes, tokenizer.downsampling) == (4096, 8)
    assert len(tokenizer.trainable_parameters(config.train_vae.train)) == len(list(tokenizer.parameters()))
    schedule = Schedule.of(config.train_vae, clips=100)
    schedule.check_processes(1, config.train_vae.accumulation)
    assert schedule.step(schedule.total_steps - 1).lr >= 0
    assert config.train_vae.commitment == 0.25


@pytest.mark.parametrize("name", ["hyperkvasir", "surgvisdom", "phantom"])
def test_shipped_configs_of_endogen_can_be_built(name: str) -> None:
    config = load_config(ROOT / "configs" / f"endogen_{name}.yaml")
    tokenizer = SimpleNamespace(downsampling=8 if name == "phantom" else 16, num_codes=16_384)
    with torch.device("meta"):
        model = build_transformer(config, tokenizer, 8)
    assert (config.vae.kind, model.length, model.config.mask_group) == ("vq", 1024, 8)
    assert model.num_parameters() == 110_126_592 or name == "phantom"
    schedule = Schedule.of(config.train_ar, clips=100)
    schedule.check_processes(2, config.train_ar.accumulation)
    assert schedule.step(schedule.total_steps - 1).lr >= 0


@pytest.mark.parametrize(
    "path",
    [path for path in CONFIGS if "endogen" not in path.stem and path.stem != "phantom_tokenizer"],
    ids=lambda path: path.stem,
)
def test_what_shipped_configs_describe_can_be_built(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """All of it but what has to be fetched: both schedules, the base, the denoiser, DINO's name."""
    monkeypatch.chdir(ROOT)  # a config's paths are relative to where its commands are run
    config = load_config(path)
    data, vae = config.data, VAES[config.vae.kind]
    channels = CHANNELS[config.vae.kind]
    vae.check_video_shape(data.frames, *data.height_width)
    for settings in (config.train_vae, config.train_dit):
        schedule = Schedule.of(settings, clips=100)
        schedule.check_processes(1, settings.accumulation)
        assert schedule.step(schedule.total_steps - 1).lr >= 0
    if config.vae.base.endswith(".json"):
        channels = load_base(config.vae.base, config.vae.weights).config.latent_channels
    if data.root is None:
        assert config.phantom.frames >= clip_span(data.frames + 1, data.interval)
    with torch.device("meta"):
        model = build_denoiser(config, channels, classes=0 if data.labels == "none" else 3)
    _, rows, columns = token_grid(config, vae, model.config.patch)
    assert rows * columns > 1
    assert model.config.in_channels == channels
    if config.dino.model.endswith(".json"):
        assert build_network(config.dino.model).num_features > 0
        return
    name = config.dino.model if config.dino.weights == "hub" else config.dino.model.partition(".")[0]
    assert name in timm.list_models(pretrained=config.dino.weights == "hub")


def test_table_3_of_endora_is_four_configs() -> None:
    """Joint images, interlaced blocks, the weight of the image prior."""
    rows = []
    for path in sorted((ROOT / "configs").glob("endora_[1-4]_*.yaml")):
        config = load_config(path)
        assert (config.denoiser.preset, config.vae.kind) == ("endora-XL", "per-frame")
        rows.append((config.images.count, config.denoiser.overrides["layout"], config.alignment.weight))
    assert rows == [(0, "separate", 0), (8, "separate", 0), (8, "interlaced", 0), (8, "interlaced", 0.5)]
    assert config.alignment.kind == "image"


@pytest.mark.parametrize(("heads", "built"), [(None, 6), (1, 1)])
def test_heads_of_the_attention_are_chosen_by_name(heads: int | None, built: int) -> None:
    config = config_from_dict({"denoiser": {"preset": "tiny", "heads": heads}}, "a test")
    with torch.device("meta"):
        assert build_denoiser(config, 4).config.heads == built


def test_heads_that_do_not_divide_the_width_are_refused() -> None:
    config = config_from_dict({"denoiser": {"preset": "tiny", "heads": 5}}, "a test")
    with pytest.raises(BadInput, match="width 192 must be divisible"), torch.device("meta"):
        build_denoiser(config, 4)


FORMER_NAMES = {new: key.was for new, key in all_keys().items() if key.was}


@pytest.mark.parametrize(("new", "was"), FORMER_NAMES.items())
def test_a_former_name_is_read_with_a_note(
    new: str, was: str, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    section, name = new.split(".")
    value = {"loss_target": "velocity", "clip_after_epoch": 3, "matmul_precision": "high"}[name]
    file = tmp_path / "old.yaml"
    file.write_text(f"{section}: {{{was}: {value}}}\n")
    for given in ((file,), (PHANTOM, [f"{section}.{was}={value}"])):
        config = load_config(*given)
        assert getattr(getattr(config, section), name) == value
        assert f"{section}.{was} is now named {new}." in caplog.text
        caplog.clear()
    assert getattr(getattr(load_config(file, [f"{new}={value}"]), section), name) == value
    file.write_text(f"{section}: {{{was}: {value}, {name}: {value}}}\n")
    with pytest.raises(BadInput, match=rf"{was} is the former name of {new}; give one of them"):
        load_config(file)


@pytest.mark.parametrize(
    ("override", "expected"),
    [
        ("data.framse=3", "did you mean 'data.frames'"),
        ("dataa.frames=3", "did you mean 'data.frames'"),
        ("dataa={frames: 3, size: 64}", "did you mean 'data'"),
        ("max_steps=3", "'train_vae.max_steps' or 'train_dit.max_steps' or 'train_ar.max_steps'"),
        ("maxsteps=3", "'train_dit.max_steps'"),
        ("train.max_steps=3", "no key 'train'; did you mean .*'train_dit.max_steps'"),
        ("data.max_steps=3", "no key 'data.max_steps'; did you mean .*'train_dit.max_steps'"),
        ("train_dit.batch=2", "did you mean .*'train_dit.phases\\[0\\].batch'"),
        ("error_of=noise", "did you mean 'train_dit.loss_target'"),
        ("data.frames=abc", "data.frames"),
        ("vae.compensation=Ture", "vae.compensation"),
        ("data.frames=0", "greater than 0"),
        ("train_dit.loss_target=speed", "noise, velocity"),
        ("data.size=big", "data.size"),
        ("images.encoding=loose", "packed, single"),
        ("images.encoding=packed", "multiple of 8"),
        ("data=3", "section"),
        ("data.holdout=1.5", "data.holdout"),
        ("cache.latents=off", "cache.prior: disk"),
        ("train_vae.l2=1.0", "no such loss"),
        ("train_dit={first_frame_prob: 0.5, given_frames: [[1]]}", "given_frames"),
        ("train_dit={first_frame_prob: 0.5, given_frames: [{a: 1}]}", "given_frames"),
        ("tracking.trackers=[tensorbord]", "one of tensorboard, wandb, trackio"),
        ("train_vae.lpips_net=squeeze", "one of vgg, alex"),
        ("train_dit.betas=[0.9, 1.5]", "betas\\[1\\] is 1.5 but must be at least 0 and below 1"),
        ("train_vae.lr=nan", "train_vae.lr is nan but must be greater than 0"),
        ("nonsense", "key=value"),
        ("train_dit.phases=[{lr: 1, batch: 2, until_epoch: 3}]", "until_epoch"),
        ("train_dit.phases=[{lrr: 1}]", "did you mean 'train_dit.phases\\[0\\].lr'"),
    ],
)
def test_bad_values_are_one_sentence_that_names_the_key(override: str, expected: str) -> None:
    with pytest.raises(BadInput, match=expected) as caught:
        load_config(PHANTOM, [override])
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(("kind", "counts"), [("causal", "1 or 9"), ("per-frame", "1 to 16")])
def test_how_many_frames_can_be_given_depends_on_the_vae(kind: str, counts: str) -> None:
    given = ["data.frames=17", f"vae.kind={kind}", "train_dit={first_frame_prob: 0.5, given_frames: [17]}"]
    with pytest.raises(BadInput, match=f"of clips of 17 frames only {counts} can be given"):
        load_config(PHANTOM, [*given, "alignment.correlation=sample"])


@pytest.mark.parametrize("loss", ["kl", "coarse", "sharpness"])
def test_losses_that_a_tokenizer_does_not_have_are_refused(loss: str) -> None:
    with pytest.raises(BadInput, match=f"train_vae.{loss} is 0.01, but vae.kind vq has no such loss"):
        load_config(PHANTOM, ["vae.kind=vq", f"train_vae.{loss}=0.01"])


def test_words_that_yaml_takes_for_false_are_what_was_written(tmp_path: Path) -> None:
    typed = load_config(PHANTOM, ["cache.latents=off", "cache.prior=off", "train_dit.precision=no"])
    path = tmp_path / "written.yaml"
    path.write_text("cache: {latents: off, prior: off}\ntrain_dit: {precision: no}\n")
    for config in (typed, load_config(path)):
        assert (config.cache.latents, config.cache.prior, config.train_dit.precision) == ("off", "off", "no")


def test_missing_and_broken_files(tmp_path: Path) -> None:
    with pytest.raises(BadInput, match=r"nowhere\.yaml"):
        load_config(tmp_path / "nowhere.yaml")
    broken = tmp_path / "broken.yaml"
    broken.write_text("data: {frames: [1, 2\n")
    with pytest.raises(BadInput, match="cannot be read as YAML"):
        load_config(broken)
    broken.write_text("- a list\n")
    with pytest.raises(BadInput, match="sections"):
        load_config(broken)


@pytest.mark.parametrize("digits", [309, 400, 5000])
@pytest.mark.parametrize("key", ["seed", "name"])
def test_integers_of_any_size_are_one_sentence(key: str, digits: int, tmp_path: Path) -> None:
    number = "1" + "0" * digits
    (tmp_path / "large.yaml").write_text(f"run:\n  {key}: -{number}\n")
    (tmp_path / "empty.yaml").write_text("{}")
    for path, overrides in (("large.yaml", []), ("empty.yaml", [f"run.{key}={number}"])):
        with pytest.raises(BadInput) as error:
            load_config(tmp_path / path, overrides)
        assert "\n" not in str(error.value)
        assert len(str(error.value)) < 1000


@pytest.mark.parametrize(
    ("overrides", "allowed"),
    [("{dropout: 1.5}", "below 1"), ("{dropout: -1}", "at least 0"), ("{depth: 0}", "1 to 4096")],
)
def test_overrides_of_a_preset_are_checked(overrides: str, allowed: str) -> None:
    assert load_config("phantom", ["denoiser.overrides={dropout: 0}"]).denoiser.overrides["dropout"] == 0
    with pytest.raises(BadInput, match=allowed):
        load_config("phantom", [f"denoiser.overrides={overrides}"])


@pytest.mark.parametrize("text", [*CUT_BY_YAML, *CHANGED_BY_YAML])
@pytest.mark.parametrize("key", ["data.root", "cache.dir"])
def test_text_on_the_command_line_is_taken_as_it_was_typed(key: str, text: str) -> None:
    section, name = key.split(".")
    assert getattr(getattr(load_config("phantom", [f"{key}={text}"]), section), name) == text
    assert getattr(getattr(load_config("phantom", [f"{key}='{text}'"]), section), name) == text


@pytest.mark.parametrize("nothing", ["null", "~"])
def test_text_can_be_set_to_none_but_not_to_nothing(nothing: str) -> None:
    assert load_config("phantom", [f"data.group={nothing}"]).data.group is None
    for blank in ("", " "):
        with pytest.raises(BadInput, match=r"has no value; write data.root=null"):
            load_config("phantom", [f"data.root={blank}"])


@pytest.mark.parametrize(
    ("override", "expected"),
    [
        ("train_dit.max_steps=010", "the command line: train_dit.max_steps is 010"),
        ("train_dit.max_steps=1_0", "the command line: train_dit.max_steps is 1_0"),
        ("train_dit.betas=[0.9, 0x1]", "the command line: train_dit.betas is 0x1"),
        ("train_dit.max_steps=5 # of 10", "would be read as train_dit.max_steps=5"),
        ("data.size=[64", "the command line: 'data.size=\\[64' cannot be read: expected"),
        ("train_dit.max_step=5", "the command line: there is no key 'train_dit.max_step'"),
    ],
)
def test_overrides_that_yaml_would_change_are_refused(override: str, expected: str) -> None:
    with pytest.raises(BadInput, match=expected):
        load_config("phantom", [override])


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("run:\n  name: 1e3\n", "line 2: run.name is 1e3, which YAML takes for 1000.0; put it in quotes"),
        ("run:\n  name: yes\n", "line 2: run.name is yes, which YAML takes for True; put it in quotes"),
        ("data:\n\n  frames: 017\n", "line 3: data.frames is 017"),
        ("run:\n  name: a\n  name: b\n", "line 3, cannot be read as YAML: found duplicate key name"),
        ("data:\n\tsize: 64\n", "line 2, cannot be read as YAML"),
    ],
)
def test_what_yaml_takes_for_something_else_is_refused_with_its_line(
    text: str, expected: str, tmp_path: Path
) -> None:
    path = tmp_path / "config.yaml"
    path.write_text(text)
    with pytest.raises(BadInput, match=expected):
        load_config(path)


@pytest.mark.parametrize("name", ["2024_01", "1e3", "yes", "null", "010", "2024-01-01"])
def test_saved_text_is_read_again_as_it_was(name: str, tmp_path: Path) -> None:
    config = load_config("phantom", [f"run.name='{name}'"])
    assert config.run.name == name
    save_config(config, tmp_path / "config.yaml")
    assert load_config(tmp_path / "config.yaml").run.name == name
