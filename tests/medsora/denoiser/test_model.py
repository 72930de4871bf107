"""medsora.denoiser.model, medsora.denoiser.parameters: the denoiser as a whole: sizes, isolation of joint
images, timesteps, cost, precision.
"""

from __future__ import annotations

from functools import partial

import pytest
import torch
from accelerate.utils import convert_to_fp32
from torch.utils.flop_counter import FlopCounterMode

from medsora.denoiser import PRESETS, MedSora, parameter_table
from tests.support.paths import ROOT

# Every switch by itself, and attention in both places; the parts of a block in which it may have parameters.
SWITCHED = [
    {"spatial": "attention"},
    {"temporal": "attention"},
    {"spatial": "attention", "temporal": "attention"},
    {"temporal": "none"},
    {"local_attention": False},
    {"scan": "raster"},
    {"scan": "snake"},
    {"axes": "height"},
    {"axes": "width"},
    {"directions": "forward"},
    {"fusion": "mean"},
]
PARTS_OF = {
    "spatial": ("spatial.",),
    "temporal": ("temporal", "modulation"),
    "local_attention": ("attention", "modulation"),
    "scan": (),
    "axes": ("spatial.gate_",),
    "directions": (),
    "fusion": ("spatial.gate_",),
}


@pytest.mark.parametrize(
    ("preset", "count"), [("S", 43_758_784), ("B", 86_466_304), ("L", 171_881_344), ("XL", 342_711_424)]
)
def test_parameter_counts_of_table_1(preset: str, count: int) -> None:
    table = parameter_table(preset)
    assert table["total"] == count
    assert sum(table.values()) == 2 * count


@pytest.mark.parametrize(
    ("preset", "count", "printed"),
    [("S", 43_760_320, "43.76"), ("B", 86_469_376, "86.47"), ("L", 171_887_488, "171.89")],
)
def test_one_head_counts_what_table_1_prints(preset: str, count: int, printed: str) -> None:
    """The authors' code has one head, and a rotary buffer in each block, which Table 1 counts."""
    table = parameter_table(preset, heads=1)
    assert table["total"] == count
    assert f"{count / 1e6:.2f}" == printed
    assert table["total"] - table["rotary frequencies"] == parameter_table(preset)["total"]


def test_one_block_has_the_parts_of_table_1() -> None:
    with torch.device("meta"):
        block = MedSora.from_preset("S").blocks[0]
    counts = {name: sum(p.numel() for p in part.parameters()) for name, part in block.named_children()}
    assert counts["modulation"] == 2_363_904
    assert counts["attention"] == 786_432
    assert counts["spatial"] == 1_719_600 + 525_312
    assert counts["temporal"] == 1_719_600
    assert sum(counts.values()) == 7_117_920


def test_a_model_shows_its_preset() -> None:
    with torch.device("meta"):
        assert [MedSora.from_preset(preset, in_channels=4).preset for preset in PRESETS] == list(PRESETS)
        assert MedSora.from_preset("B", heads=4).preset is None
        assert MedSora.from_preset("B", heads=1).preset == "B"  # denoiser.heads: 1, the authors' choice
        assert MedSora.from_preset("B", heads=1, width=256).preset is None


@pytest.mark.parametrize("preset", PRESETS)
def test_every_preset_builds_with_its_depth_and_spirals(preset: str) -> None:
    with torch.device("meta"):
        model = MedSora.from_preset(preset)
    assert len(model.blocks) == PRESETS[preset]["depth"]
    assert [block.spatial.variant for block in model.blocks] == [i % 8 for i in range(len(model.blocks))]


def test_a_model_counts_itself_as_its_preset_does() -> None:
    assert parameter_table(MedSora.from_preset("tiny")) == parameter_table("tiny")


def test_untrained_model_predicts_zero_and_every_weight_can_learn(small_model) -> None:
    z, t = torch.randn(2, 3, 4, 4, 4), torch.tensor([1, 900])
    fresh = MedSora.from_preset("tiny", depth=1, in_channels=4)(z, t)
    assert not fresh.eps.any()
    assert not fresh.variance.any()

    model = small_model()
    out = model(z, t, num_images=1)
    (out.eps.square().sum() + out.variance.square().sum()).backward()
    idle = [name for name, p in model.named_parameters() if p.grad is None or not p.grad.any()]
    assert idle == []


@pytest.mark.parametrize(("height", "width"), [(2, 2), (4, 4), (8, 4), (6, 10)])
@pytest.mark.parametrize("frames", [1, 4])
@torch.no_grad()
def test_serves_any_size_that_patches_divide(small_model, height: int, width: int, frames: int) -> None:
    z = torch.randn(2, frames + 2, 4, height, width)
    out = small_model()(z, torch.tensor([0, 999]), num_images=2)
    assert out.eps.shape == out.variance.shape == z.shape
    assert [tuple(f.shape) for f in out.features] == [(2, frames, height * width // 4, 32)] * 2
    assert [tuple(f.shape) for f in out.image_features] == [(2, 2, height * width // 4, 32)] * 2


@torch.no_grad()
def test_patches_go_back_to_where_they_came_from(small_model) -> None:
    model = small_model(depth=0)  # without blocks no patch influences another
    z = torch.randn(1, 1, 4, 6, 10)
    changed = z.clone()
    changed[..., 2:4, 8:10] += 1
    out, other = model(z, torch.tensor([5])), model(changed, torch.tensor([5]))
    moved = (out.eps != other.eps).any(2)[0, 0]
    assert moved.nonzero().tolist() == [[2, 8], [2, 9], [3, 8], [3, 9]]


@torch.no_grad()
def test_isolated_images_influence_neither_the_clip_nor_one_another(small_model) -> None:
    model, t = small_model(), torch.tensor([30, 400])
    z = torch.randn(2, 6, 4, 4, 4)
    out = model(z, t, num_images=2)

    others = z.clone()
    others[:, 4:] = torch.randn(2, 2, 4, 4, 4)
    other = model(others, t, num_images=2)
    assert torch.equal(out.eps[:, :4], other.eps[:, :4])
    assert torch.equal(out.variance[:, :4], other.variance[:, :4])
    assert all(torch.equal(a, b) for a, b in zip(out.features, other.features, strict=True))
    assert not torch.equal(out.eps[:, 4:], other.eps[:, 4:])

    second = z.clone()
    second[:, 5] += 1
    assert torch.equal(out.eps[:, 4], model(second, t, num_images=2).eps[:, 4])

    clip_only = model(z[:, :4], t)
    torch.testing.assert_close(out.eps[:, :4], clip_only.eps, atol=1e-5, rtol=1e-4)
    alone = model(z[:, 5:], t)
    torch.testing.assert_close(out.eps[:, 5:], alone.eps, atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize("switch", SWITCHED, ids=str)
def test_a_switch_changes_its_part_and_nothing_else(small_model, switch: dict, tmp_path) -> None:
    z, t = torch.randn(1, 5, 4, 4, 4), torch.tensor([30])
    model, paper = small_model(**switch), small_model()
    shapes, of_paper = ({k: v.shape for k, v in m.state_dict().items()} for m in (model, paper))
    changed = [key for key in shapes | of_paper if shapes.get(key) != of_paper.get(key)]
    parts = tuple(part for name in switch for part in PARTS_OF[name])
    assert [key for key in changed if not key.split(".", 2)[-1].startswith(parts)] == []

    out = model(z, t, num_images=1)
    assert out.features[0].shape == (1, 4, 4, 32)
    (out.eps.square().sum() + out.variance.square().sum()).backward()
    assert [name for name, p in model.named_parameters() if p.grad is None or not p.grad.any()] == []
    if shapes == of_paper:
        model.load_state_dict(paper.state_dict(), strict=True)
    with torch.no_grad():
        out = model(z, t, num_images=1)
        assert not torch.allclose(out.eps, paper(z, t, num_images=1).eps, atol=1e-3)
        near = partial(torch.allclose, rtol=0, atol=1e-6)  # some processors round by where tensors lie
        others = z.clone()
        others[:, 4] += 1
        assert near(model(others, t, num_images=1).eps[:, :4], out.eps[:, :4]), "images stay apart"
        others = z.clone()
        others[:, 3] += 1
        same = [near(a, b) for a, b in zip(out.eps[0], model(others, t, 1).eps[0], strict=True)]
        causal = switch == {"spatial": "attention"}  # the temporal Mamba alone connects frames
        first = causal or switch == {"directions": "forward"}  # these spirals visit frame 0 first
        assert same == [first, causal, causal, False, True]

        model.save_pretrained(tmp_path)
        again = MedSora.from_pretrained(tmp_path)
        # Some CPUs round differently where weights lie elsewhere in memory.
        torch.testing.assert_close(again(z, t, num_images=1).eps, out.eps, atol=1e-5, rtol=1e-5)
        assert {name: again.config[name] for name in switch} == switch


@torch.no_grad()
def test_without_a_temporal_part_features_are_the_blocks_output(small_model) -> None:
    model = small_model(depth=1, temporal="none")
    seen = []
    model.blocks[0].register_forward_hook(lambda block, inputs, output: seen.append(output[0]))
    out = model(torch.randn(1, 3, 4, 4, 4), torch.tensor([5]))
    assert torch.equal(out.features[0], seen[0])


@pytest.mark.parametrize("preset", PRESETS)
def test_attention_in_mambas_place_has_nearly_as_many_parameters(preset: str) -> None:
    paper = parameter_table(preset)
    for part in ("spatial", "temporal"):
        control = parameter_table(preset, **{part: "attention"})
        assert control[f"{part} attention"] == pytest.approx(paper[f"{part} Mamba"], rel=0.04)
        assert control["total"] == pytest.approx(paper["total"], rel=0.01)


def test_the_documentation_states_the_parameters_of_every_switch() -> None:
    page = (ROOT / "docs" / "ablation.md").read_text(encoding="utf-8")
    for switch in SWITCHED:
        settings = ", ".join(f"`{name}={str(value).lower()}`" for name, value in switch.items())
        with torch.device("meta"):
            counts = [MedSora.from_preset(preset, **switch).num_parameters() for preset in ("S", "B")]
        assert f"| {settings} | {counts[0]:,} | {counts[1]:,} |" in page


def test_a_model_with_a_switch_has_no_presets_name() -> None:
    with torch.device("meta"):
        assert [MedSora.from_preset("S", **switch).preset for switch in SWITCHED] == [None] * len(SWITCHED)


@torch.no_grad()
def test_mixed_images_take_part_in_the_clips_scans(small_model) -> None:
    model, t = small_model(mixing="mixed"), torch.tensor([30])
    z = torch.randn(1, 6, 4, 4, 4)
    out = model(z, t, num_images=2)
    as_frames = model(z, t)
    assert torch.equal(out.eps, as_frames.eps)
    assert out.features[0].shape[1] == 4

    others = z.clone()
    others[:, 4:] += 1
    assert not torch.equal(out.eps[:, :4], model(others, t, num_images=2).eps[:, :4])


@torch.no_grad()
def test_one_timestep_per_latent_equals_a_shared_one_when_they_agree(small_model) -> None:
    model, z = small_model(), torch.randn(2, 3, 4, 4, 4)
    t = torch.tensor([7, 800])
    shared, each = model(z, t, 1), model(z, t[:, None].expand(-1, 3), 1)
    torch.testing.assert_close(shared.eps, each.eps, atol=1e-5, rtol=1e-4)
    torch.testing.assert_close(shared.features[1], each.features[1], atol=1e-5, rtol=1e-4)
    differing = torch.tensor([[7, 7, 300], [800, 800, 300]])
    assert torch.equal(model(z, differing, 1).eps[:, :2], each.eps[:, :2])
    assert not torch.equal(model(z, differing, 1).eps[:, 2], each.eps[:, 2])


def test_gradient_checkpointing_changes_nothing(small_model) -> None:
    z, t = torch.randn(1, 3, 4, 4, 4), torch.tensor([100])
    gradients = []
    for checkpointing in (False, True):
        model = small_model(dropout=0.3).train()
        if checkpointing:
            model.enable_gradient_checkpointing()
        torch.manual_seed(1)
        out = model(z, t, num_images=1)
        (out.eps.square().mean() + sum(f.square().mean() for f in out.features)).backward()
        gradients.append([p.grad for p in model.parameters()])
    for plain, checkpointed in zip(*gradients, strict=True):
        assert (plain is None) == (checkpointed is None)
        assert plain is None or torch.equal(plain, checkpointed)


def test_cost_is_linear_in_frames() -> None:
    """16 to 256 video frames of 128x128 pixels are 4 to 64 latents: at most 1.3 times sixteenfold."""
    model = MedSora.from_preset("S", depth=1, backend="torch").eval()
    flops = []
    for latents in (4, 64):
        with FlopCounterMode(display=False) as counter, torch.no_grad():
            model(torch.randn(1, latents, 16, 16, 16), torch.tensor([0]))
        flops.append(counter.get_total_flops())
    assert flops[1] <= 1.3 * 16 * flops[0]


def test_output_survives_accelerates_conversion_to_full_precision(small_model) -> None:
    with torch.autocast("cpu", dtype=torch.bfloat16):
        out = small_model()(torch.randn(1, 2, 4, 4, 4), torch.tensor([3]))
    converted = convert_to_fp32(out)
    assert type(converted) is type(out)
    assert {converted.eps.dtype, converted.variance.dtype, converted.features[0].dtype} == {torch.float32}


@torch.no_grad()
def test_runs_in_half_precision(small_model) -> None:
    z, t = torch.randn(1, 3, 4, 4, 4), torch.tensor([500])
    model = small_model()
    expected = model(z, t).eps
    half = model.to(torch.bfloat16)(z.bfloat16(), t).eps
    assert half.dtype == torch.bfloat16
    assert (half.float() - expected).norm() < 0.05 * expected.norm()


@pytest.mark.parametrize(
    ("shape", "t_shape", "num_images", "sentence"),
    [
        ((1, 2, 3, 4, 4), (1,), 0, r"latents must be \(B, n, 4, h, w\), not \(1, 2, 3, 4, 4\)"),
        ((2, 4, 4, 4), (2,), 0, "latents must be"),
        ((1, 2, 4, 5, 4), (1,), 0, "5x4 do not divide into 2x2 patches"),
        ((2, 3, 4, 4, 4), (3,), 0, r"timesteps must be \(2,\) or \(2, 3\), not \(3,\)"),
        ((1, 2, 4, 4, 4), (1,), 2, "2 of 2 latent frames cannot be images: a clip must remain"),
        ((1, 2, 4, 4, 4), (1,), -1, "cannot be images"),
    ],
)
def test_refuses_shapes_that_do_not_fit(small_model, shape, t_shape, num_images, sentence) -> None:
    with pytest.raises(ValueError, match=sentence):
        small_model()(torch.randn(shape), torch.zeros(t_shape), num_images)


@pytest.mark.parametrize(
    ("name", "overrides", "sentence"),
    [
        ("M", {}, "preset 'M' is unknown; there are tiny, S, B, L, XL"),
        ("S", {"dept": 3}, "no setting 'dept'; it has in_channels, width, depth"),
        ("tiny", {"heads": 5}, "width 192 must be divisible"),
        ("tiny", {"headdim": 100}, "expand \\* width = 384 must be divisible by headdim 100"),
        ("tiny", {"mixing": "shaken"}, "mixing 'shaken' is unknown; it is one of isolated, mixed"),
        ("tiny", {"prediction": "rain"}, "prediction 'rain' is unknown; it is one of noise, velocity"),
        ("tiny", {"scan": "scribble"}, "scan 'scribble' is unknown; it is one of spiral, raster, "),
        ("tiny", {"headdim": 3, "spatial": "attention"}, "headdim 3 must be even"),
    ],
)
def test_refuses_settings_that_do_not_fit(name, overrides, sentence) -> None:
    with pytest.raises(ValueError, match=sentence):
        MedSora.from_preset(name, **overrides)
