"""The plain model and the fast one: the same parameters, outputs and gradients."""

from __future__ import annotations

import subprocess
import sys
from importlib.util import find_spec
from inspect import signature

import pytest
import torch
from torch import Tensor, nn

from medsora.config.switches import PAPER
from medsora.denoiser import MedSora, attention, plain
from medsora.denoiser.plain import PlainMedSora
from medsora.errors import BadInput
from tests.medsora.conftest import SMALL
from tests.support.patience import PATIENCE_S

# Relative to the largest value; A_log's gradients are sums that cancel: 2.3e-5 in float32, all others 6e-6.
TOLERANCE = {torch.float32: 4e-5, torch.float64: 1e-10}

# On a CPU the package's kernels run in Triton's interpreter; its compiled parts have stand-ins, and its
# __init__ would import transformers.
WITH_MAMBA_SSM = """
import sys
from types import ModuleType

import torch

from medsora.kernels import mamba_ssm_backend
from tests.support.triton.run_mamba_ssm import stand_in_for_a_gpu

stand_in_for_a_gpu()
mamba_ssm_backend.function_in_use = lambda: "mamba_chunk_scan_combined"
mamba_ssm_backend.unusable = lambda: None
sys.modules["causal_conv1d"] = None
sys.modules["mamba_ssm"] = ModuleType("mamba_ssm")
sys.modules["mamba_ssm"].__path__ = [sys.argv[1]]

from medsora.denoiser.plain import PlainMedSora
from tests.medsora.conftest import SMALL

packages = PlainMedSora(**SMALL)
ours = PlainMedSora(**SMALL, use_mamba_ssm=False)
ours.load_state_dict(packages.state_dict(), strict=True)
package, plain = (model.blocks[0].temporal.mamba for model in (packages, ours))
print(type(package).__module__, type(plain).__module__)
z = torch.randn(1, 5, 32)
with torch.no_grad():
    torch.testing.assert_close(package(z), plain(z), atol=1e-5, rtol=1e-5)
"""


def plain_form(model: MedSora) -> PlainMedSora:
    """A plain model of `model`'s settings, weights and precision."""
    names = signature(PlainMedSora).parameters.keys() - {"use_mamba_ssm"}
    twin = PlainMedSora(**{name: model.config[name] for name in names}, use_mamba_ssm=False)
    twin.load_state_dict(model.state_dict(), strict=True)
    return twin.to(model.dtype).train(model.training)


def assert_same(actual: dict[str, Tensor], expected: dict[str, Tensor], tolerance: float) -> None:
    assert actual.keys() == expected.keys()
    for name, value in expected.items():
        assert value.any(), f"{name} is all zeros, so the comparison is empty"
        error = (actual[name] - value).abs().max() / value.abs().max()
        assert error < tolerance, f"{name} differs by {error:.1e}"


def outputs_and_gradients(
    model: nn.Module, *inputs: Tensor | int | None, **options: Tensor
) -> dict[str, Tensor]:
    out = model(*inputs, **options)
    values = {"eps": out.eps, "variance": out.variance}
    values |= {f"features.{index}": tokens for index, tokens in enumerate(out.features)}
    torch.manual_seed(1)
    loss = sum((value * torch.randn(value.shape)).sum() for value in values.values())
    names, weights = zip(*model.named_parameters(), strict=True)
    gradients = dict(zip(names, torch.autograd.grad(loss, weights), strict=True))
    return {name: value.detach() for name, value in (values | gradients).items()}


def test_it_takes_the_arguments_of_the_fast_model() -> None:
    ours, theirs = (
        {name: parameter.default for name, parameter in signature(model).parameters.items()}
        for model in (PlainMedSora, MedSora)
    )
    assert ours.pop("use_mamba_ssm") is None
    assert theirs.pop("backend") == "auto"
    assert theirs.pop("prior_width") == 0  # the adapter of Endora's image prior
    for name in PAPER.keys() - {"scan"}:
        assert theirs.pop(name) == PAPER[name]
    assert ours == theirs
    with pytest.raises(BadInput, match="mixing 'mxied' is unknown"):
        PlainMedSora(mixing="mxied")


@pytest.mark.parametrize("classes", [0, 3])
def test_state_dicts_interchange(classes: int) -> None:
    ours, fast = (
        PlainMedSora(**SMALL, classes=classes, use_mamba_ssm=False),
        MedSora(**SMALL, classes=classes),
    )
    ours.load_state_dict(fast.state_dict(), strict=True)
    fast.load_state_dict(ours.state_dict(), strict=True)


def test_an_untrained_one_predicts_zero() -> None:
    out = PlainMedSora(**SMALL, use_mamba_ssm=False)(torch.randn(1, 2, 4, 4, 4), torch.tensor([5]))
    assert not out.eps.any()
    assert not out.variance.any()
    assert all(tokens.any() for tokens in out.features)


@pytest.mark.parametrize("dtype", TOLERANCE)
@pytest.mark.parametrize("mixing", ["isolated", "mixed"])
@pytest.mark.parametrize(
    ("settings", "size", "num_images"),
    [
        ({}, (8, 8), 2),  # 16 tokens, two windows
        ({"prediction": "velocity"}, (6, 10), 1),  # 15 tokens, which windows of 8 do not divide
        ({"patch": 1, "classes": 3, "scan": "raster"}, (3, 4), 2),  # 12 tokens
        ({"scan": "snake"}, (6, 4), 1),
        ({"patch": 1, "classes": 3, "window": 4}, (1, 2), 0),  # 2 tokens, less than a window
    ],
)
def test_outputs_and_gradients_are_those_of_the_fast_model(
    small_model, dtype: torch.dtype, mixing: str, settings: dict, size: tuple[int, int], num_images: int
) -> None:
    model = small_model(**settings, mixing=mixing).to(dtype)
    z = torch.randn(2, 3 + num_images, 4, *size, dtype=dtype)
    t = torch.tensor([3, 700])
    options = {"labels": torch.tensor([0, 2])} if model.labels is not None else {}
    expected = outputs_and_gradients(model, z, t, num_images, **options)
    actual = outputs_and_gradients(plain_form(model), z, t, num_images, **options)
    assert_same(actual, expected, TOLERANCE[dtype])


@pytest.mark.parametrize("mixing", ["isolated", "mixed"])
@torch.no_grad()
def test_each_latent_may_have_its_own_timestep_and_label(small_model, mixing: str) -> None:
    model = small_model(classes=3, mixing=mixing).double()
    z = torch.randn(2, 5, 4, 4, 6, dtype=torch.float64)
    t = torch.randint(0, 1000, (2, 5))
    t[:, 0] = 0  # a given first frame
    for labels in (None, torch.randint(0, 4, (2, 5)), torch.tensor([1, 3])):
        expected, actual = (form(z, t, 2, labels=labels) for form in (model, plain_form(model)))
        torch.testing.assert_close(actual.eps, expected.eps, atol=1e-10, rtol=1e-10)
        torch.testing.assert_close(actual.variance, expected.variance, atol=1e-10, rtol=1e-10)


@pytest.mark.parametrize(("length", "heads"), [(n, 4) for n in (1, 7, 8, 9, 64, 65, 130)] + [(64, 1)])
def test_attention_is_right_at_any_length(length: int, heads: int) -> None:
    fast = attention.LocalAttention(32, heads=heads, window=8, dropout=0.1).double().eval()
    ours = plain.LocalAttention(32, heads=heads, window=8, dropout=0.1).double().eval()
    ours.load_state_dict(fast.state_dict(), strict=True)
    x = torch.randn(2, 3, length, 32, dtype=torch.float64, requires_grad=True)
    weight = torch.randn(2, 3, length, 32, dtype=torch.float64)
    expected, actual = fast(x), ours(x)
    torch.testing.assert_close(actual, expected, atol=1e-10, rtol=1e-10)
    (expected,), (actual,) = (torch.autograd.grad((y * weight).sum(), x) for y in (expected, actual))
    torch.testing.assert_close(actual, expected, atol=1e-10, rtol=1e-10)


def test_attention_drops_out_in_training_only() -> None:
    ours = plain.LocalAttention(32, heads=4, window=8, dropout=0.5)
    x = torch.randn(1, 1, 16, 32)
    assert not torch.equal(ours.train()(x), ours(x))
    assert torch.equal(ours.eval()(x), ours(x))


@pytest.mark.skipif(
    find_spec("mamba_ssm") is None, reason="mamba-ssm is not installed; 'make test' installs it"
)
def test_mamba_ssm_takes_the_place_of_mamba2_where_it_is_usable() -> None:
    command = [sys.executable, "-c", WITH_MAMBA_SSM, *find_spec("mamba_ssm").submodule_search_locations]
    run = subprocess.run(command, capture_output=True, text=True, timeout=PATIENCE_S)
    assert run.returncode == 0, run.stderr[-3000:]
    assert run.stdout.split() == ["mamba_ssm.modules.mamba2", "medsora.denoiser.plain"]
