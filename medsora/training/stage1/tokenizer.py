"""Stage 1 of a VQ tokenizer: its loss, the use of its codes, and the revival of dead ones."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from medsora.training.randomness import generator_for
from medsora.training.stage1.stage import VaeStage
from medsora.training.stage_parts import ValuePart
from medsora.vae import VQTokenizer
from medsora.vae.losses import TokenizerLossParts


@dataclass
class TokenizerStage(VaeStage):
    """Stage 1 for `vae.kind: vq`: the codebook learns by gradient and stays normalised.

    A code that no latent of any process took in `train_vae.revive_after` steps becomes a latent of the last
    step, drawn by the step's number: a resumed run, and one on more processes, draws the same.
    """

    vae: VQTokenizer

    def __post_init__(self) -> None:
        self.vae.normalize_codebook()  # as after every step
        self._last_used = torch.zeros(self.vae.num_codes, dtype=torch.long)
        self._seen: list[tuple[Tensor, Tensor, Tensor]] = []  # this step's samples, latents, codes

    @property
    def values(self) -> dict[str, ValuePart]:
        """The step that each code was last used in."""
        return {"last_used": ValuePart(lambda step: self._last_used.tolist(), self._restore_last_used, list)}

    def compute_loss(self, model: nn.Module, video: Tensor, samples: Tensor) -> TokenizerLossParts:
        """Return the loss's parts on clips (B, F, 3, H, W), and note which codes they take."""
        out = model(video)
        if out.codes is not None:
            each = out.codes.numel() // len(video)
            numbers = samples.to(out.codes.device)
            of_clip = (len(video), each, -1)
            latents = out.latents.detach().reshape(of_clip)
            self._seen.append((numbers, latents, out.codes.reshape(len(video), each)))
        return self.loss(out, video)

    @torch.no_grad()
    def update_codebook(self, done: int, norm: Tensor) -> dict[str, float]:
        """Normalise the codebook and replace dead codes after `done` steps; return the codes' use."""
        if not self._seen or not norm.isfinite():  # such a step is undone
            self._seen.clear()
            return {}
        gathered = [self.accelerator.gather(torch.cat(part)) for part in zip(*self._seen, strict=True)]
        self._seen.clear()
        order = gathered[0].argsort()  # the same order on any number of processes
        latents, codes = gathered[1][order].flatten(0, 1), gathered[2][order].flatten()
        self.vae.normalize_codebook()
        self._last_used[codes.unique().cpu()] = done
        dead = (done - self._last_used >= self.config.train_vae.revive_after).nonzero().flatten()
        metrics = {"codes_used": 1 - len(dead) / self.vae.num_codes, "perplexity": perplexity(codes)}
        draw = generator_for(self.config.run.seed, "revive", done)
        chosen = torch.randperm(len(latents), generator=draw)[: len(dead)]
        dead = dead[: len(chosen)]
        self.vae.codebook[dead.to(latents.device)] = latents[chosen.to(latents.device)]
        self._last_used[dead] = done
        return metrics

    @torch.no_grad()
    def code_metrics(self, clips: Sequence[dict[str, Any]]) -> dict[str, float]:
        """Return the part of the codebook that `clips` take, and the perplexity of their codes."""
        if not self.vae.config.quantize:
            return {}
        codes = [self.vae.encode(clip["video"].to(self.accelerator.device)).flatten() for clip in clips]
        taken = torch.cat(codes)
        used = len(taken.unique()) / self.vae.num_codes
        return {"held_out/codes_used": used, "held_out/perplexity": perplexity(taken)}

    def loss_without_draws(self, video: Tensor) -> Tensor:
        """Return the loss of one clip (1, F, 3, H, W)."""
        return self.loss(self.vae(video), video).total

    def set_scale(self) -> None:
        """Codes have no scale."""

    def _restore_last_used(self, last_used: list[int]) -> None:
        self._last_used = torch.tensor(last_used, dtype=torch.long)


def perplexity(codes: Tensor) -> float:
    """Return exp of the entropy of `codes`' frequencies: 1 if all are the same one."""
    shares = codes.flatten().bincount().cpu().double() / codes.numel()  # not all devices have float64
    return float(torch.special.entr(shares).sum().exp())
