"""medsora.training.stage2.inputs, medsora.training.stage2.stage, medsora.training.stage2.samples: the flow
prior runs for the samples that need it and no other, and leaving it out changes nothing.
"""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from medsora.flow_prior import FlowPrior, alignment_loss, dino
from medsora.flow_prior.dino import DinoEncoder
from medsora.flow_prior.dis import DisEstimator
from medsora.sampling.pipeline import MedSoraPipeline
from medsora.training.randomness import timestep_for
from medsora.training.schedule import SampleKey
from medsora.training.stage2 import samples as dit_samples
from medsora.training.stage2.build import build_denoiser_stage, build_prior
from medsora.training.stage2.stage import Stage2
from medsora.vae.compensation import compensation_modules
from tests.support import tiny_training as tiny

ALWAYS_ZERO_FROM = 199  # SPEC: 2·g(t) <= 0.01


def count(monkeypatch: pytest.MonkeyPatch, owner: type, name: str) -> list[int]:
    """Return a list that grows by one with every call."""
    calls, method = [], getattr(owner, name)

    def counted(*arguments, **options):
        calls.append(1)
        return method(*arguments, **options)

    monkeypatch.setattr(owner, name, counted)
    return calls


@pytest.mark.parametrize("cache", ["off", "disk"])
def test_the_prior_runs_only_where_it_can_matter(
    cache: str, clips: Path, vae_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    timesteps = [timestep_for(1000, 0, sample) for sample in range(8)]
    expected = sum(t < ALWAYS_ZERO_FROM for t in timesteps)
    assert 0 < expected < 8
    estimated = count(monkeypatch, DisEstimator, "forward")
    encoded = count(monkeypatch, DinoEncoder, "forward")
    config = tiny.tiny_config(
        tmp_path, clips, vae__path=str(vae_folder), cache__latents=cache, train_dit__eval_every=100
    )
    run = tiny.train("dit", config)
    assert len(estimated) == len(encoded) == expected
    logged = [line["loss/alignment"] for line in tiny.log_lines(run) if "loss/alignment" in line]
    for step, loss in enumerate(logged):
        alone = all(t >= ALWAYS_ZERO_FROM for t in timesteps[2 * step : 2 * step + 2])
        assert not (alone and loss)


def test_without_weight_no_prior_is_built_and_parts_that_were_switched_are_saved(
    clips: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """`alignment.weight=0`, an untouched base, and switches: trained, evaluated, sampled, loaded again."""
    monkeypatch.setattr(FlowPrior, "build", None)
    switches = {"temporal": "attention", "scan": "snake", "axes": "height", "fusion": "mean"}
    config = tiny.tiny_config(
        tmp_path,
        clips,
        vae__path="base",
        vae__compensation=False,
        alignment__weight=0,
        train_dit__max_steps=2,
        train_dit__sample_every=2,
        **{f"denoiser__{name}": value for name, value in switches.items()},
    )
    run = tiny.train("dit", config)
    assert not any("alignment" in name for line in tiny.log_lines(run) for name in line)
    pipeline = MedSoraPipeline.from_run(run)
    assert {name: pipeline.denoiser.config[name] for name in switches} == switches
    assert not any(True for _ in compensation_modules(pipeline.vae))
    assert pipeline(num_inference_steps=2, output_type="uint8").frames.shape == (1, 16, 32, 32, 3)


def test_a_trained_compensation_that_stays_is_reported(clips: Path, vae_folder: Path, tmp_path: Path) -> None:
    config = tiny.tiny_config(
        tmp_path, clips, vae__path=str(vae_folder), vae__compensation=False, alignment__weight=0
    )
    stage = build_denoiser_stage(config)
    assert any(compensation_modules(stage.vae))
    messages = (stage.run.path / "messages.txt").read_text(encoding="utf-8")
    assert "vae.compensation is false, but the VAE was trained with a compensation" in messages


def test_only_the_run_s_own_sentence_is_kept_quiet_while_the_prior_is_built(
    clips: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    build = dino.build_network

    def build_and_warn(*arguments, **options):
        dino.logger.warning("something else")
        return build(*arguments, **options)

    monkeypatch.setattr(dino, "build_network", build_and_warn)
    config = tiny.tiny_config(tmp_path, clips)
    assert build_prior(config, 2).untrained
    assert caplog.messages == ["something else"]
    assert not dino.logger.filters
    assert not dino.logger.disabled
    DinoEncoder(config.dino.model, "random")
    assert "is untrained" in caplog.messages[-1]


def test_gradients_with_and_without_the_skip(
    clips: Path, vae_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = tiny.tiny_config(tmp_path, clips, vae__path=str(vae_folder))
    with tiny.nothing_silent():
        stage = build_denoiser_stage(config)
    stage.model.eval()
    numbers = some_samples(needed=2, others=2)
    skipped, losses = alignment_gradients(stage, numbers)
    runs = count(monkeypatch, FlowPrior, "distinct_targets")
    monkeypatch.setattr(dit_samples, "needed", lambda t, margin: torch.ones_like(t, dtype=torch.bool))
    complete, all_losses = alignment_gradients(stage, numbers)
    assert len(runs) == 4
    torch.testing.assert_close(losses, all_losses, rtol=0, atol=1e-6)
    assert losses[:2].all()
    assert not all_losses[2:].any()
    assert any(gradient.any() for gradient in skipped.values())
    for name in skipped:
        torch.testing.assert_close(skipped[name], complete[name], rtol=0, atol=1e-6)


def some_samples(*, needed: int, others: int) -> list[int]:
    """Return numbers of samples whose alignment loss is small in t, then of ones where it is always zero."""
    low = [n for n in range(500) if timestep_for(1000, 0, n) < 60]
    high = [n for n in range(500) if timestep_for(1000, 0, n) >= ALWAYS_ZERO_FROM]
    return low[:needed] + high[:others]


def alignment_gradients(stage: Stage2, numbers: list[int]) -> tuple[dict[str, torch.Tensor], torch.Tensor]:
    """Return the gradients of the alignment loss, with weight 1, and the loss of each sample."""
    batch = stage.samples.collate([stage.samples[SampleKey(n, 0, i % 4)] for i, n in enumerate(numbers)])
    noised = stage.inputs.noised_latents(batch)
    out = stage.model(noised.z_t, noised.t, num_images=noised.num_images)
    targets = stage.inputs.alignment_targets(batch)
    loss = alignment_loss(out.features, targets, noised.t, needed=noised.needed)
    stage.model.zero_grad()
    loss.loss.backward()
    named = stage.model.named_parameters()
    return {name: p.grad.clone() for name, p in named if p.grad is not None}, loss.per_sample.detach()


def test_the_priors_cache_gives_what_was_computed(
    clips: Path, vae_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    runs = count(monkeypatch, FlowPrior, "distinct_targets")
    stages = [
        build_denoiser_stage(
            tiny.tiny_config(
                tmp_path, clips, vae__path=str(vae_folder), cache__latents="disk", cache__prior=prior
            )
        )
        for prior in ("off", "disk")
    ]
    numbers = some_samples(needed=3, others=1)
    computed, kept, recalled = (
        stage.inputs.alignment_targets(
            stage.samples.collate([stage.samples[SampleKey(n, 0, i)] for i, n in enumerate(numbers)])
        )
        for stage in (*stages, stages[1])
    )
    assert len(runs) == 3 + 3 + 0
    for one, two, three in zip(computed, kept, recalled, strict=True):
        assert one.shape == (3, 4, 4, 32)  # f latent frames, 2x2 tokens
        assert torch.equal(two, three)  # or a resumed run would differ from one that was not
        torch.testing.assert_close(one, two, rtol=1e-3, atol=1e-3)  # kept as fp16
