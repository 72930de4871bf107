"""The parts of EndoGen's training: what its checkpoints hold, its evaluation and its samples."""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from typing import Any, ClassVar

import torch
from accelerate import Accelerator
from torch import Tensor, nn

from medsora.baselines.endogen import EndoGen
from medsora.config.schema import Config
from medsora.runtime.interruption import StopRequest
from medsora.sampling.tokens import EndoGenPipeline
from medsora.saved.checkpoint import save_model
from medsora.saved.find import ENDOGEN
from medsora.training.ar.loss import NextCodeLoss
from medsora.training.ar.samples import CodeSamples
from medsora.training.run.described import GeneratorStage, keep_samples
from medsora.training.run.folder import RunFolder
from medsora.training.schedule import Schedule
from medsora.training.stage_parts import ModelPart, StageParts, ValuePart


@dataclass
class ArStage(GeneratorStage):
    """The parts of EndoGen's training, built and checked before its first step (`build.py`)."""

    config: Config
    accelerator: Accelerator
    run: RunFolder
    samples: CodeSamples
    held_out_codes: Tensor
    held_out_labels: Tensor
    model: EndoGen
    tokenizer: Any
    decoder_digest: str
    loss: NextCodeLoss
    optimizer: torch.optim.Optimizer
    schedule: Schedule
    held_out_loss: ClassVar = "held_out/loss"
    other_decoder: ClassVar = "was trained on the codes of another tokenizer"

    @property
    def parts(self) -> StageParts:
        """Parts of a checkpoint; without the tokenizer, which must be the same when a run resumes."""
        names = {id(parameter): name for name, parameter in self.model.named_parameters()}
        return StageParts(
            self.run,
            self.config,
            self.config.train_ar,
            self.optimizer,
            names=[names[id(p)] for group in self.optimizer.param_groups for p in group["params"]],
            models={"transformer": ModelPart(partial(save_model, self.model), self.model.load_weights)},
            values={
                "tokenizer": ValuePart(lambda step: self.decoder_digest, self.require_same_decoder),
                "labels": ValuePart(lambda step: list(self.labels), self.require_same_labels),
            },
            model_bytes=sum(parameter.nbytes for parameter in self.model.parameters()),
            early_stop=self.early_stop,
        )

    @property
    def decoder(self) -> tuple[str, nn.Module]:
        """The tokenizer, in the run's folder of that name."""
        return "tokenizer", self.tokenizer

    @property
    def geometry(self) -> dict[str, Any]:
        """Geometry of the training clips, for a pipeline."""
        return {"_class_name": ENDOGEN, **self.clip_geometry()}

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
        self.run.log(step, dict(zip((self.held_out_loss, "held_out/accuracy"), means, strict=True)))

    def sample(self, step: int, stop: StopRequest) -> None:
        """Sample a few videos; see `keep_samples`."""
        pipeline = EndoGenPipeline(self.model, self.tokenizer, **self.clip_geometry())
        keep_samples(self.run, step, stop, pipeline, self.config.train_ar.sample_videos, self.labels)
