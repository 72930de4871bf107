"""medsora.training.stage1.loop, medsora.training.stage1.build, medsora.training.stage1.stage,
medsora.training.stage1.tokenizer,
medsora.training.stage2.loop, medsora.training.loop_end, medsora.training.stage_parts,
medsora.training.step_guard, medsora.training.run.folder: stopped at any step by anything and started
again, a run is the run that nobody stopped, bit for bit.
"""

from __future__ import annotations

import dataclasses
import multiprocessing
import os
import shutil
import signal
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace

import psutil
import pytest
import torch
from diffusers import AutoencoderKLCogVideoX

from medsora.config.load import config_from_dict
from medsora.config.schema import Config
from medsora.denoiser import MedSora
from medsora.diffusion import DiffusionLoss, GaussianDiffusion
from medsora.errors import BadInput
from medsora.runtime.exit import exit_with_status
from medsora.sampling.compiled import compile_blocks
from medsora.training import step_guard as non_finite
from medsora.training.dry_run.report import Findings, dry_run_vae, inspect_run
from medsora.training.progress import Progress
from medsora.training.run import folder
from medsora.training.run.folder import refuse_changes, with_compensation_kind
from medsora.training.stage1.build import unused_path_note
from medsora.training.stage1.stage import VaeStage
from medsora.training.stage2 import build as dit_build
from medsora.vae import FrequencyCompensatedVAE
from medsora.vae.choices import DEFAULT_COMPENSATION
from medsora.vae.losses import TokenizerLoss, VaeLoss
from tests.support import tiny_training as tiny

STEPS = 4
KINDS = {
    "stage-1": ("vae", {}),
    "stage-1-tokenizer": ("vae", tiny.TOKENIZER),
    "stage-2": ("dit", {}),
    "stage-2-cached": ("dit", {"cache__latents": "disk", "cache__prior": "disk"}),
}


@dataclasses.dataclass(frozen=True)
class Straight:
    """A run that went through, and how to configure the same one elsewhere."""

    stage: str
    run: Path
    configure: Callable[..., Config]


@pytest.fixture(scope="module", params=KINDS)
def straight(
    request: pytest.FixtureRequest, clips: Path, vae_folder: Path, tmp_path_factory: pytest.TempPathFactory
) -> Straight:
    stage, changes = KINDS[request.param]

    def configure(work: Path, **others) -> Config:
        return tiny.tiny_config(work, clips, **{"vae__path": str(vae_folder)} | changes | others)

    torch.manual_seed(1)  # what ran before in the process must not matter
    work = tmp_path_factory.mktemp(request.param)
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(work)
        return Straight(stage, tiny.train(stage, configure(work)), configure)


def status_of(stage: str, config: Config) -> int:
    with pytest.raises(SystemExit) as left:
        exit_with_status(lambda: tiny.train(stage, config))
    return left.value.code


def test_interrupted_and_resumed(
    straight: Straight, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture
) -> None:
    """Ctrl-C and timeout(1) signal the whole group: the loader's worker is there and must not die of it."""
    count, others = Progress.count, set(multiprocessing.active_children())

    def count_and_signal(self: Progress, *arguments) -> None:
        patch.setattr(Progress, "count", count)  # a second signal ends a run at once
        count(self, *arguments)
        for process in [*psutil.Process().children(), psutil.Process()]:
            os.kill(process.pid, signal.SIGTERM)

    with monkeypatch.context() as patch:
        patch.setattr(Progress, "count", count_and_signal)
        assert status_of(straight.stage, straight.configure(tmp_path, data__workers=1)) == 75
    assert "interrupted: received SIGTERM; saved after step 2" in capfd.readouterr().err
    assert set(multiprocessing.active_children()) <= others  # who would not hear SIGTERM at the exit
    run = tiny.train(straight.stage, straight.configure(tmp_path))
    assert f"resuming after step 2 of {STEPS}" in (run / "messages.txt").read_text()
    tiny.assert_same_run(run, straight.run, STEPS)


def test_a_checkpoint_cut_in_half(straight: Straight, tmp_path: Path) -> None:
    config = straight.configure(tmp_path)
    run = config.vae_dir if straight.stage == "vae" else config.dit_dir
    shutil.copytree(straight.run, run)
    newest = run / "checkpoints" / f"step-{STEPS:07d}"
    victim = sorted(newest.rglob("*.safetensors"))[-1]
    victim.write_bytes(victim.read_bytes()[: victim.stat().st_size // 2])
    tiny.train(straight.stage, config)
    output = (run / "messages.txt").read_text()
    assert f"{newest} is damaged" in output
    assert f"resuming after step 2 of {STEPS}" in output
    tiny.assert_same_run(run, straight.run, STEPS)


def test_a_run_that_is_done_stays_as_it_is(straight: Straight, tmp_path: Path) -> None:
    config = straight.configure(tmp_path)
    run = config.vae_dir if straight.stage == "vae" else config.dit_dir
    shutil.copytree(straight.run, run)
    tiny.train(straight.stage, config)
    tiny.assert_same_run(run, straight.run, STEPS)


def test_a_run_with_more_steps_than_max_steps_reports_it(straight: Straight, tmp_path: Path) -> None:
    options = {f"train_{straight.stage}__max_steps": 2}
    config = straight.configure(tmp_path, **options)
    run = config.vae_dir if straight.stage == "vae" else config.dit_dir
    shutil.copytree(straight.run, run)
    tiny.train(straight.stage, config)
    output = (run / "messages.txt").read_text()
    assert f"nothing left to train: the run has done {STEPS} steps and ends after 2" in output
    assert f"of {STEPS}" not in output
    assert "of 2" not in output


@pytest.mark.parametrize("changes", [{}, {"log_every": 3}], ids=["each step logged", "every third"])
def test_a_finished_run_is_extended_bit_for_bit(
    changes: dict[str, int], straight: Straight, tmp_path: Path
) -> None:
    """Training from the old end on is that of a run with the new end, which logged nothing at the old one."""
    options = {f"train_{straight.stage}__{key}": value for key, value in changes.items()}
    for steps in (2, STEPS):
        run = tiny.train(
            straight.stage,
            straight.configure(tmp_path, **options | {f"train_{straight.stage}__max_steps": steps}),
        )
    assert "learning rate" not in (run / "messages.txt").read_text()
    if not changes:
        tiny.assert_same_run(run, straight.run, STEPS)
        return
    ours, theirs = tiny.saved_tensors(run, STEPS), tiny.saved_tensors(straight.run, STEPS)
    assert [name for name in theirs if not torch.equal(ours[name], theirs[name])] == []
    once = tiny.train(straight.stage, straight.configure(tmp_path / "once", **options))
    lines = {line["step"]: line for line in tiny.log_lines(once) if "lr" in line}
    assert [line for line in tiny.log_lines(run) if line["step"] == 3 and "lr" in line] == [lines[3]]


def test_activations_may_be_recomputed_from_any_step_on(straight: Straight, tmp_path: Path) -> None:
    """As a run needs it that has run out of memory."""
    keys = {"vae": "train_vae__gradient_checkpointing", "dit": "denoiser__gradient_checkpointing"}
    for steps, recomputes in ((2, False), (STEPS, True)):
        options = {f"train_{straight.stage}__max_steps": steps, keys[straight.stage]: recomputes}
        run = tiny.train(straight.stage, straight.configure(tmp_path, **options))
    tiny.assert_same_run(run, straight.run, STEPS)


def test_an_extended_run_reports_how_its_decaying_learning_rate_changes(
    straight: Straight, tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    decay = {f"train_{straight.stage}__lr_decay": "cosine"}

    def train(steps: int) -> Path:
        return tiny.train(
            straight.stage,
            straight.configure(tmp_path, **decay | {f"train_{straight.stage}__max_steps": steps}),
        )

    def planned(steps: int) -> str:
        config = straight.configure(tmp_path, **decay | {f"train_{straight.stage}__max_steps": steps})
        config = with_compensation_kind(config) if straight.stage == "vae" else config
        capsys.readouterr()
        inspect_run(Findings(), config, f"train_{straight.stage}", 4, 1)
        return capsys.readouterr().out

    train(2)
    assert "learning rate" not in planned(2)
    promised = planned(STEPS)
    run = train(STEPS)
    output = (run / "messages.txt").read_text().splitlines()
    (message,) = [line for line in output if "learning rate" in line]
    assert message in promised
    assert message.startswith("the run ends after step 4 instead of 2, and the cosine decay with it: the")
    assert "continues at 0.0005 instead of 0.0005;" in message  # half of a cosine from either end
    rates = {line["step"]: line["lr"] for line in tiny.log_lines(run) if "lr" in line}
    assert [rates[step] for step in (2, 3, 4)] == pytest.approx([5e-4, 5e-4, 1.4645e-4], rel=1e-3)
    before = len(output)
    assert "learning rate" not in planned(2), "an earlier end leaves nothing to train"
    for steps in (STEPS, 2):
        train(steps)
    assert "learning rate" not in "".join((run / "messages.txt").read_text().splitlines()[before:])


def test_another_optimiser_is_resumed_too_and_refused_by_any_other(
    clips: Path, vae_folder: Path, tmp_path: Path
) -> None:
    def configure(work: Path, steps: int, optimizer: str = "nadam") -> Config:
        options = {"train_dit__optimizer": optimizer, "train_dit__max_steps": steps}
        return tiny.tiny_config(work, clips, vae__path=str(vae_folder), alignment__weight=0, **options)

    once = tiny.train("dit", configure(tmp_path / "once", STEPS))
    for steps in (2, STEPS):
        run = tiny.train("dit", configure(tmp_path, steps))
    tiny.assert_same_run(run, once, STEPS)
    with pytest.raises(BadInput, match=r"train_dit\.optimizer=nadam, but now it is radam"):
        tiny.train("dit", configure(tmp_path, STEPS, "radam"))
    (run / "config.yaml").unlink()
    with pytest.raises(BadInput, match=r"state of the optimiser nadam, but train_dit\.optimizer is radam"):
        tiny.train("dit", configure(tmp_path, STEPS, "radam"))


def test_a_base_that_diffusers_saved_is_trained_on_and_resumed(clips: Path, tmp_path: Path) -> None:
    AutoencoderKLCogVideoX(**tiny.BASE).save_pretrained(tmp_path / "base")
    for steps in (1, 2):
        options = {"train_dit__max_steps": steps, "alignment__weight": 0}
        run = tiny.train(
            "dit", tiny.tiny_config(tmp_path, clips, vae__path=str(tmp_path / "base"), **options)
        )
    assert (run / "checkpoints" / "step-0000002").is_dir()
    assert isinstance(FrequencyCompensatedVAE.from_pretrained(run / "vae"), FrequencyCompensatedVAE)


def test_stage_1_reports_that_it_leaves_vae_path_alone(
    clips: Path, vae_folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    """Who sets it may mean what stage 1 starts from, which is `vae.base`."""
    config = tiny.tiny_config(tmp_path, clips, vae__path=str(vae_folder), train_vae__max_steps=1)
    run = tiny.train("vae", config)
    (message,) = [line for line in (run / "messages.txt").read_text().splitlines() if "vae.path" in line]
    assert message.startswith(f"vae.path is {vae_folder}: the next training uses that instead of")
    dry_run_vae(config)
    assert message in capsys.readouterr().out
    for own in (config.vae_dir.parent, config.vae_dir, config.vae_dir / "final"):
        assert unused_path_note(tiny.tiny_config(tmp_path, clips, vae__path=str(own))) is None


def test_a_compiled_denoiser_is_refused_on_a_cpu(clips: Path, vae_folder: Path, tmp_path: Path) -> None:
    config = tiny.tiny_config(tmp_path, clips, vae__path=str(vae_folder), train_dit__compile=True)
    with pytest.raises(BadInput, match=r"train_dit\.compile needs a GPU .* this run is on cpu: leave it off"):
        tiny.train("dit", config)
    assert not config.dit_dir.exists(), "refused before anything is made"


def test_a_compiled_denoiser_trains_resumes_and_saves_the_same_names(
    clips: Path, vae_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """`aot_eager` stands in for a GPU's compiler: it traces and splits the graphs, and computes as before."""
    compiled: list[MedSora] = []

    def stand_in(model: MedSora) -> None:
        compiled.append(model)
        compile_blocks(model, backend="aot_eager")

    monkeypatch.setattr(dit_build, "check_compile", lambda: None)
    monkeypatch.setattr(dit_build, "compile_blocks", stand_in)

    def train(work: Path, steps: int, **changes: bool) -> Path:
        options = {"train_dit__max_steps": steps, "vae__path": str(vae_folder), "alignment__weight": 0}
        return tiny.train("dit", tiny.tiny_config(work, clips, **options | changes))

    once = train(tmp_path / "once", STEPS, train_dit__compile=True)
    for steps in (2, STEPS):
        run = train(tmp_path, steps, train_dit__compile=True)
    assert len(compiled) == 3
    assert all(block._compiled_call_impl is not None for model in compiled for block in model.blocks)
    tiny.assert_same_run(run, once, STEPS)
    plain = tiny.saved_tensors(train(tmp_path / "plain", STEPS), STEPS)
    ours = tiny.saved_tensors(run, STEPS)
    assert ours.keys() == plain.keys()
    for name, tensor in plain.items():
        torch.testing.assert_close(ours[name], tensor, rtol=1e-3, atol=1e-4, msg=name)


def poison(monkeypatch: pytest.MonkeyPatch, stage: str, call: int) -> None:
    """Let the loss of one micro-batch be NaN, the first being number 0."""
    name = "forward" if stage == "vae" else "hybrid_loss"
    owners = (VaeLoss, TokenizerLoss) if stage == "vae" else (GaussianDiffusion,)
    computes, calls = {owner: getattr(owner, name) for owner in owners}, iter(range(1000))

    def computed(self, *arguments, **options):
        out = computes[type(self)](self, *arguments, **options)
        if next(calls) != call:
            return out
        if stage == "dit":
            return DiffusionLoss(*(part * float("nan") for part in out))
        return out._replace(total=out.total * float("nan"))

    for owner in owners:
        monkeypatch.setattr(owner, name, computed)


@pytest.mark.parametrize("lag", [0, 1])
@pytest.mark.parametrize("step", [0, 2, 3])
def test_a_loss_that_is_not_finite(
    step: int,
    lag: int,
    straight: Straight,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture,
) -> None:
    # Who writes a line of the log waits for the device in any case: with a lag none is written.
    rarely = {f"train_{straight.stage}__log_every": 100} if lag else {}
    config = straight.configure(tmp_path, **rarely)
    with monkeypatch.context() as patch:
        patch.setattr(non_finite, "LAG", {"cpu": lag})  # 1 as on a GPU, whose work the host does not wait for
        poison(patch, straight.stage, step)
        assert status_of(straight.stage, config) == 1
    (line,) = [line for line in capsys.readouterr().err.splitlines() if line.startswith("error:")]
    assert f"the loss became nan at step {step} on phantom-0000" in line
    assert ".mkv@" in line
    assert ("(timestep " in line) == (straight.stage == "dit")
    run = config.vae_dir if straight.stage == "vae" else config.dit_dir
    newest = sorted((run / "checkpoints").iterdir())[-1]
    assert newest.name == f"step-{step:07d}"
    tiny.train(straight.stage, config)
    if not lag:
        tiny.assert_same_run(run, straight.run, STEPS)
        return
    ours, theirs = (tiny.saved_tensors(each, STEPS) for each in (run, straight.run))
    assert [name for name in theirs if not torch.equal(ours[name], theirs[name])] == []


def test_gradients_that_are_not_finite_never_reach_the_weights(
    clips: Path,
    vae_folder: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture,
) -> None:
    hybrid_loss = GaussianDiffusion.hybrid_loss

    def finite_with_infinite_slope(self, eps, *arguments, **options):
        out = hybrid_loss(self, eps, *arguments, **options)
        return DiffusionLoss(*(part + (eps - eps.detach()).abs().sum().sqrt() for part in out))

    monkeypatch.setattr(GaussianDiffusion, "hybrid_loss", finite_with_infinite_slope)
    config = tiny.tiny_config(tmp_path, clips, vae__path=str(vae_folder), alignment__weight=0)
    assert status_of("dit", config) == 1
    assert "the gradients' norm became nan at step 0" in capsys.readouterr().err
    saved = tiny.saved_tensors(config.dit_dir, 0)
    assert all(tensor.isfinite().all() for tensor in saved.values())


@pytest.mark.parametrize("scale", [2.0**16, non_finite.MIN_SCALE, non_finite.MIN_SCALE / 2])
def test_gradients_that_overflow_at_any_scale_are_not_left_out_for_ever(scale: float) -> None:
    """As under fp16, whose scaler halves the scale after each of them."""
    scaler = torch.amp.GradScaler("cpu", init_scale=scale)
    accelerator = SimpleNamespace(scaler=scaler, device=torch.device("cpu"), num_processes=1)
    guard = non_finite.StepGuard(accelerator, torch.optim.SGD([torch.zeros(1)]))
    record = non_finite.StepRecord(0)
    record.add(torch.tensor(1.0), {"name": ["a.mkv@0"]})
    bad, _ = guard.check(record, torch.tensor(float("nan")), stops=False, at_once=False)
    assert bad is (record if scale < non_finite.MIN_SCALE else None)


def test_the_time_limit_is_kept_before_the_first_step_too(
    clips: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    config = tiny.tiny_config(tmp_path, clips, train_vae__eval_every=100)
    resume = VaeStage.resume

    def late(stage: VaeStage) -> int:
        start = resume(stage)
        signal.raise_signal(signal.SIGALRM)  # an hour's alarm, which nobody wants to wait for here
        return start

    monkeypatch.setattr(VaeStage, "resume", late)
    with pytest.raises(SystemExit) as left:
        exit_with_status(lambda: tiny.vae_loop.train_vae(config, time_limit_minutes=60))
    assert left.value.code == 75
    output = capsys.readouterr().err
    assert output.endswith(
        "interrupted: the time limit is reached; what was saved before is intact; rerun to resume.\n"
    )
    assert "Traceback" not in output
    assert not (config.vae_dir / "checkpoints").exists()


def test_going_on_rewrites_what_sampling_needs_only_if_it_differs(straight: Straight, tmp_path: Path) -> None:
    if straight.stage == "vae":
        pytest.skip("stage 1's run is not sampled from")
    config = straight.configure(tmp_path)
    shutil.copytree(straight.run, config.dit_dir)
    described = config.dit_dir / "pipeline.json"
    before = described.read_text(encoding="utf-8"), described.stat()
    tiny.train("dit", config)
    assert described.stat().st_ino == before[1].st_ino
    assert described.stat().st_mtime_ns == before[1].st_mtime_ns
    described.write_text("{}", encoding="utf-8")
    tiny.train("dit", config)
    assert described.read_text(encoding="utf-8") == before[0]


@pytest.mark.parametrize("stage", ["vae", "dit"])
def test_a_run_begun_before_there_were_kinds_of_compensation_continues_as_causal(
    stage: str, clips: Path, vae_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(folder, "DEFAULT_COMPENSATION", "standard")

    def configure(steps: int, **changes: str) -> Config:
        options = {f"train_{stage}__max_steps": steps, "vae__path": str(vae_folder)}
        return tiny.tiny_config(tmp_path, clips, **options | changes)

    run = tiny.train(stage, configure(2, vae__compensation_kind="causal"))
    written = (run / "config.yaml").read_text(encoding="utf-8")
    assert written.count("  compensation_kind: causal\n") == 1
    (run / "config.yaml").write_text(written.replace("  compensation_kind: causal\n", ""), encoding="utf-8")
    for steps in (3, 4):  # the second time the config names the kind
        tiny.train(stage, configure(steps))
        assert (run / "checkpoints" / f"step-{steps:07d}").is_dir()
    if stage == "vae":
        assert FrequencyCompensatedVAE.from_pretrained(run / "final").config.compensation_kind == "causal"
        with pytest.raises(BadInput, match=r"vae\.compensation_kind=causal, but now it is standard"):
            tiny.train(stage, configure(5, vae__compensation_kind="standard"))


def test_a_new_run_takes_and_names_the_default_kind_of_compensation(clips: Path, tmp_path: Path) -> None:
    config = tiny.tiny_config(tmp_path, clips, train_vae__max_steps=1)
    assert config.vae.compensation_kind == "auto"
    run = tiny.train("vae", config)
    written = (run / "config.yaml").read_text(encoding="utf-8")
    assert f"compensation_kind: {DEFAULT_COMPENSATION}" in written
    assert (
        FrequencyCompensatedVAE.from_pretrained(run / "final").config.compensation_kind
        == DEFAULT_COMPENSATION
    )


def test_another_vae_is_refused(straight: Straight, tmp_path: Path) -> None:
    if straight.stage == "vae":
        pytest.skip("stage 1 trains the VAE")
    config = straight.configure(tmp_path, vae__path=str(tiny.write_vae(tmp_path / "other", seed=9)))
    shutil.copytree(straight.run, config.dit_dir)
    (config.dit_dir / "config.yaml").unlink()  # it names the other folder and would be refused for that
    with pytest.raises(BadInput, match="latents of another VAE"):
        tiny.train("dit", config)


def test_other_settings_are_refused_but_not_those_of_the_other_stage(
    straight: Straight, tmp_path: Path
) -> None:
    other = {"denoiser__mixing": "mixed"}
    config = straight.configure(tmp_path, **other)
    run = config.vae_dir if straight.stage == "vae" else config.dit_dir
    shutil.copytree(straight.run, run)
    if straight.stage == "vae":
        tiny.train("vae", config)
    else:
        with pytest.raises(BadInput, match=r"denoiser.mixing=isolated, but now it is mixed"):
            tiny.train("dit", config)


@pytest.mark.parametrize(
    ("stage", "section", "values", "refused"),
    [
        ("train_dit", "train_dit", {"keep": 9, "save_every": 9, "sample_steps": 9, "max_steps": 9}, None),
        ("train_dit", "train_dit", {"ema_decay": 0.5}, "train_dit.ema_decay"),
        ("train_dit", "train_dit", {"epochs": 9, "lr_decay": "cosine"}, None),
        ("train_dit", "train_vae", {"lr": 1.0}, None),
        ("train_dit", "denoiser", {"overrides": {"depth": 3}}, "denoiser.overrides.depth"),
        ("train_dit", "data", {"workers": 9}, None),
        ("train_dit", "denoiser", {"gradient_checkpointing": True}, None),
        ("train_vae", "train_vae", {"gradient_checkpointing": True}, None),
        ("train_dit", "data", {"labels": "folders"}, "data.labels"),
        ("train_dit", "cache", {"dir": "elsewhere"}, None),
        ("train_dit", "cache", {"latents": "disk"}, "cache.latents"),
        ("train_vae", "cache", {"latents": "disk"}, None),
        ("train_ar", "cache", {"latents": "disk", "prior": "disk", "image_groups": 9}, None),
        ("train_vae", "data", {"labels": "folders"}, None),
        ("train_vae", "data", {"interval": 9}, "data.interval"),
        ("train_vae", "vae", {"path": "elsewhere"}, None),
        ("train_vae", "vae", {"compensation": False}, "vae.compensation"),
        ("train_vae", "train_dit", {"ema_decay": 0.5}, None),
        ("train_vae", "tracking", {"project": "other"}, None),
    ],
)
def test_which_keys_a_resumed_run_may_change(
    stage: str, section: str, values: dict, refused: str | None
) -> None:
    before, now = config_from_dict({}, "before"), config_from_dict({section: values}, "now")
    if section == stage:
        getattr(before, stage).lr_decay = getattr(now, stage).lr_decay
    if refused is None:
        refuse_changes(before, now, stage, Path("run"))
    else:
        with pytest.raises(BadInput, match=rf"^run holds a run with {refused}="):
            refuse_changes(before, now, stage, Path("run"))
