"""Codes that no latent took for long are replaced by latents; all others stay; their use is counted."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from medsora.training.stage1.tokenizer import TokenizerStage, perplexity
from medsora.vae import VQTokenizer
from medsora.vae.choices import TOKENIZERS

CODES = 32
SMALL = {"block_out_channels": [8, 8, 8, 8], "latent_channels": 8, "num_vq_embeddings": CODES}
FINITE = torch.tensor(1.0)


@pytest.fixture
def stage() -> TokenizerStage:
    torch.manual_seed(0)
    vae = VQTokenizer.from_base(TOKENIZERS["phantom"] | SMALL)
    config = SimpleNamespace(run=SimpleNamespace(seed=0), train_vae=SimpleNamespace(revive_after=2))
    accelerator = SimpleNamespace(gather=lambda tensor: tensor)
    return TokenizerStage(config, accelerator, None, None, None, vae, None, None, None)


def take(stage: TokenizerStage, *codes: int) -> Tensor:
    """Let the latents of two clips take these codes; return the latents, (codes, d)."""
    latents = F.normalize(torch.randn(len(codes), 4), dim=1)
    stage._seen.append((torch.tensor([5, 3]), latents.view(2, -1, 4), torch.tensor(codes).view(2, -1)))
    return latents


def test_only_codes_unused_for_long_become_latents(stage: TokenizerStage) -> None:
    before = stage.vae.codebook.detach().clone()
    take(stage, 0, 0, 1, 1)
    assert stage.update_codebook(1, FINITE) == {"codes_used": 1.0, "perplexity": pytest.approx(2)}
    torch.testing.assert_close(stage.vae.codebook, before)

    latents = take(stage, 0, 0, 0, 2)
    found = stage.update_codebook(2, FINITE)
    assert found["codes_used"] == 3 / CODES
    changed = (stage.vae.codebook - before).abs().amax(1) > 1e-3
    assert not changed[:3].any(), "taken in this step or in the one before"
    rows = changed.nonzero().flatten()
    assert len(rows) == len(latents), "a latent each, whatever the number of unused codes"
    distances = torch.cdist(stage.vae.codebook[rows], latents)
    assert sorted(distances.argmin(1).tolist()) == [0, 1, 2, 3]
    assert distances.amin(1).max() < 1e-5
    assert (stage._last_used[rows] == 2).all()


def test_a_step_that_is_undone_revives_nothing(stage: TokenizerStage) -> None:
    before = stage.vae.codebook.detach().clone()
    take(stage, 0, 0, 0, 0)
    assert stage.update_codebook(9, torch.tensor(torch.inf)) == {}
    assert torch.equal(stage.vae.codebook, before)
    assert stage.update_codebook(9, FINITE) == {}, "its codes are forgotten"


def test_perplexity_is_the_number_of_equally_frequent_codes() -> None:
    assert perplexity(torch.tensor([[3, 3], [3, 3]])) == pytest.approx(1)
    assert perplexity(torch.tensor([0, 9, 4, 7])) == pytest.approx(4)
    assert perplexity(torch.tensor([0, 0, 1])) == pytest.approx(3 / 2 ** (2 / 3))
