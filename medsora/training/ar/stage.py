"""The parts of EndoGen's training: what its checkpoints hold, its evaluation and its samples."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from accelerate import Accelerator
from torch import Tensor

from medsora.baselines.endogen import EndoGen
from medsora.config.schema import Config
from medsora.errors import BadInput
from medsora.runtime.interruption import StopRequest
from medsora.sampling.tokens import EndoGenPipeline
from medsora.saved.find import DEFAULT_FPS, ENDOGEN
from medsora.training.ar.loss import NextCodeLoss
from medsora.training.ar.samples import CodeSamples, label_of
from medsora.training.loop_end import PeriodicTask
from medsora.training.run.described import (
    describe_model,
    evaluation_and_samples,
    keep_samples,
    require_same_labels,
)
from medsora.training.run.early_stop import EarlyStop
from medsora.training.run.folder import RunFolder
from medsora.training.schedule import Schedule
from medsora.training.stage_parts import ModelPart, StageParts, ValuePart

HELD_OUT_LOSS = "held_out/loss"


@dataclass
class ArStage:
    """The parts of EndoGen's training, built and checked before its first step (`build.py`)."""

    config: Config
    accelerator: Accelerator
    run: RunFolder
    samples: CodeSamples
    held_out_codes: Tensor
    held_out_labels: Tensor
    model: EndoGen
    tokenizer: Any
    tokenizer_digest: str
    loss: NextCodeLoss
    optimizer: torch.optim.Optimizer
    schedule: Schedule

    @property
    def parts(self) -> StageParts:
        """What a checkpoint holds; the tokenizer is not in it, but it must be the one of before."""
        names = {id(parameter): name for name, parameter in self.model.named_parameters()}
        return StageParts(
            self.run,
            self.config,
            self.config.train_ar,
            self.optimizer,
            names=[names[id(p)] for group in self.optimizer.param_groups for p in group["params"]],
            models={"transformer": ModelPart(self.model.save_pretrained, self.model.load_weights)},
            values={
                "tokenizer": ValuePart(lambda step: self.tokenizer_digest, self._check_tokenizer),
                "labels": ValuePart(lambda step: list(self._labels), self._check_labels),
            },
            model_bytes=sum(parameter.nbytes for parameter in self.model.parameters()),
            early_stop=self.early_stop,
        )

    @property
    def early_stop(self) -> EarlyStop | None:
        """Stops on the cross entropy of held-out clips."""
        return EarlyStop.of(self.run, self.config.train_ar, HELD_OUT_LOSS)

    @property
    def tasks(self) -> list[PeriodicTask]:
        """Its evaluation and its samples."""
        return evaluation_and_samples(self.run, self.config.train_ar, self.evaluate, self.sample)

    @property
    def clip_labels(self) -> list[int]:
        """The label's number of every training clip."""
        return [label_of(self.samples.clips, index) for index in range(len(self.samples.clips))]

    @property
    def geometry(self) -> dict[str, Any]:
        """What a pipeline must know of the clips that the transformer is trained on."""
        data, rate = self.config.data, self.samples.clips.report.fps
        known = {"interval": data.interval, "rate": rate, "labels": list(self._labels)}
        return {
            "_class_name": ENDOGEN,
            "frames": data.frames,
            "size": list(data.height_width),
            "fps": rate or DEFAULT_FPS,
            "crop": data.crop,
            **{key: value for key, value in known.items() if value},
        }

    @property
    def _labels(self) -> tuple[str, ...]:
        return self.samples.clips.labels.names

    def _check_tokenizer(self, digest: str | None) -> None:
        if digest != self.tokenizer_digest:
            raise BadInput(
                f"{self.run.path} was trained on the codes of another tokenizer than the one of vae.path or "
                "stage 1 gives now; take another run.name, or put that one back to resume that run."
            )

    def _check_labels(self, names: list[str] | None) -> None:
        require_same_labels(self.run, names, self._labels)

    def resume(self) -> int:
        """Take up the newest whole checkpoint, if there is one; return the number of finished steps.

        Also writes beside it what sampling needs of this run. Raises `BadInput` or `OSError` if the
        checkpoint cannot be taken up by this model, or the tokenizer is another.
        """
        start = self.parts.resume(self.schedule)
        rate = self.samples.clips.report.fps
        describe_model(self.run, "tokenizer", self.tokenizer, self.geometry, rate)
        return start

    @torch.no_grad()
    def evaluate(self, step: int) -> None:
        """Log the cross entropy of fixed held-out clips, and how often the likeliest code is the clip's."""
        device, losses, right = self.accelerator.device, [], []
        self.model.eval()
        for codes, label in zip(self.held_out_codes, self.held_out_labels, strict=True):
            codes, label = codes[None].to(device), label[None].to(device)
            losses.append(self.loss(self.model, codes, label))
            right.append((self.model(codes[:, :-1], label).argmax(-1) == codes).float().mean())
        self.model.train()
        means = (float(torch.stack(each).mean()) for each in (losses, right))
        self.run.log(step, dict(zip((HELD_OUT_LOSS, "held_out/accuracy"), means, strict=True)))

    def sample(self, step: int, stop: StopRequest) -> None:
        """Sample a few videos; see `keep_samples`."""
        clip = {key: value for key, value in self.geometry.items() if key != "_class_name"}
        pipeline = EndoGenPipeline(self.model, self.tokenizer, **clip)
        keep_samples(self.run, step, stop, pipeline, self.config.train_ar.sample_videos, self._labels)
