"""medsora.studies.variants: what --vary asks for, and one sentence for what cannot be varied."""

from __future__ import annotations

from pathlib import Path

import pytest

from medsora.config.schema import STAGE_1, STAGE_2
from medsora.errors import BadInput
from medsora.studies.variants import Variant, variants_of


@pytest.fixture
def config(tmp_path: Path) -> str:
    path = tmp_path / "a.yaml"
    path.write_text("denoiser: {preset: tiny, overrides: {depth: 2}}\nalignment: {weight: 0.01}\n")
    return str(path)


def changes(variants: list[Variant]) -> list[tuple[str, ...]]:
    return [variant.changes for variant in variants]


def test_one_change_at_a_time_from_the_config_which_comes_first(config: str) -> None:
    stage, variants = variants_of(
        config, [], ["denoiser.scan=spiral,raster,snake", "alignment.weight=0.01,0"]
    )
    assert stage == STAGE_2
    assert changes(variants) == [
        (),
        ("denoiser.scan=raster",),
        ("denoiser.scan=snake",),
        ("alignment.weight=0",),
    ]
    assert [variant.config.denoiser.scan for variant in variants] == ["spiral", "raster", "snake", "spiral"]
    assert [variant.config.alignment.weight for variant in variants] == [0.01, 0.01, 0.01, 0]
    assert variants[0].title == "as configured"


def test_a_grid_holds_every_combination(config: str) -> None:
    vary = ["denoiser.scan=spiral,raster", "denoiser.overrides.depth=2,4"]
    _, variants = variants_of(config, [], vary, grid=True)
    assert changes(variants) == [
        (),
        ("denoiser.overrides.depth=4",),
        ("denoiser.scan=raster",),
        ("denoiser.scan=raster", "denoiser.overrides.depth=4"),
    ]


def test_the_reference_is_the_config_with_its_overrides(config: str) -> None:
    _, variants = variants_of(config, ["denoiser.scan=raster"], ["denoiser.scan=spiral,raster"])
    assert changes(variants) == [(), ("denoiser.scan=spiral",)]


def test_stage_1_is_studied_where_its_keys_vary(config: str) -> None:
    assert variants_of(config, [], ["train_vae.ffl=0.1,0", "vae.compensation_kind=standard"])[0] == STAGE_1
    assert variants_of(config, [], ["vae.path=base"])[0] == STAGE_2


def test_lists_are_one_value(config: str) -> None:
    _, variants = variants_of(config, [], ["train_dit.betas=[0.9,0.98],[0.9,0.99]"])
    assert [variant.config.train_dit.betas for variant in variants[1:]] == [[0.9, 0.98], [0.9, 0.99]]


def test_names_of_runs_are_names_and_differ(config: str) -> None:
    vary = [f"vae.path=runs/{'x' * 80}/a,runs/{'x' * 80}/b,base"]
    names = [variant.run_name(7) for variant in variants_of(config, [], vary)[1]]
    assert len(set(names)) == len(names) == 4
    assert all("/" not in name and len(name) < 90 for name in names)
    assert "vae.path=base-seed-7" in names


@pytest.mark.parametrize(
    ("vary", "sentence"),
    [
        (["denoiser.scan"], "names no values; write key=value,value"),
        (["denoiser.scan=raster,,snake"], "names no values"),
        (["denoiser.scna=raster"], "there is no key 'denoiser.scna'; did you mean 'denoiser.scan'"),
        (["denoiser.scan=zigzag"], "denoiser.scan is 'zigzag' but must be one of"),
        (["denoiser.scan=spiral"], "--vary changes nothing"),
        (["denoiser.scan=raster", "denoiser.scan=snake"], "names denoiser.scan twice"),
        (["run.seed=1,2"], "--vary cannot change run.seed: all variants share"),
        (["data.size=64"], "--vary cannot change data.size"),
        (["endogen.mask=0.3,0"], "cannot change endogen.mask: train-dit does not read it"),
        (["train_ar.lr=1e-3"], "cannot change train_ar.lr: train-dit does not read it"),
        (["train_dit.max_steps=5"], "cannot change train_dit.max_steps: it does not change what"),
        (
            ["train_vae.ffl=0", "denoiser.scan=raster"],
            "train_vae.ffl of stage 1 and denoiser.scan of stage 2",
        ),
        ([f"alignment.margin={','.join(map(str, range(1, 70)))}"], "gives 69 variants; the maximum is 64"),
    ],
)
def test_what_cannot_be_varied_is_one_sentence(config: str, vary: list[str], sentence: str) -> None:
    with pytest.raises(BadInput, match=sentence) as refusal:
        variants_of(config, [], vary)
    assert "\n" not in str(refusal.value)
