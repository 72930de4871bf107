"""Autoregressive sampling of a clip's codes: guidance, temperature, top-k and top-p, one seed per clip."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from medsora.baselines.endogen.model import EndoGen
from medsora.errors import NonFiniteVideo


@torch.no_grad()
def generate(
    model: EndoGen,
    labels: Sequence[int],
    generators: Sequence[torch.Generator],
    *,
    guidance: float = 1.0,
    temperature: float = 1.0,
    top_k: int = 2000,
    top_p: float = 1.0,
    after_code: Callable[[int], None] | None = None,
) -> Tensor:
    """Return codes (B, N) of clips with `labels`, each drawn by its own generator (on the CPU).

    Args:
        labels: numbers; the number of classes stands for no label.
        guidance: s in no label's logits + s · (label's - no label's); 1 is the model as trained, and one
            forward of B instead of 2·B.
        temperature: what logits are divided by; 0 takes the likeliest code.
        top_k, top_p: as in `filter_logits`.
        after_code: called with the number of each code.

    Raises:
        NonFiniteVideo: if logits are NaN or infinite.
    """
    given = torch.tensor(labels, device=model.device)
    guided = guidance != 1
    if guided:
        given = torch.cat((given, torch.full_like(given, model.config.classes)))
    cache, last, codes = model.start(len(given)), None, []
    finite = torch.ones(len(labels), dtype=torch.bool, device=model.device)
    for number in range(model.length):
        logits = model.step(cache, last, given).float()
        if guided:
            labelled, without = logits.chunk(2)
            logits = without + guidance * (labelled - without)
        finite &= logits.isfinite().all(dim=-1)
        code = draw(logits, generators, temperature, top_k, top_p)
        codes.append(code)
        last = torch.cat((code, code)) if guided else code
        if after_code is not None:
            after_code(number)
    if not finite.all():
        raise NonFiniteVideo(
            f"the logits of clip {finite.tolist().index(False) + 1} of a batch of {len(labels)} are NaN or "
            "infinite; check the model's weights, or take dtype fp32."
        )
    return torch.stack(codes, dim=1)


def draw(
    logits: Tensor, generators: Sequence[torch.Generator], temperature: float, top_k: int, top_p: float
) -> Tensor:
    """Draw codes (B,) of logits (B, K) by exponential races: the first of K clocks with these rates to ring.

    Unlike a point on the cumulated probabilities, the winner depends on rounding only where two clocks ring
    at once, so a clip's codes hardly ever depend on the batch that it is in.
    """
    if temperature == 0:
        return logits.argmax(dim=-1)
    kept = filter_logits(logits / temperature, top_k, top_p)
    times = torch.stack([torch.empty(logits.shape[1]).exponential_(generator=g) for g in generators])
    return (kept - times.to(logits.device).log()).argmax(dim=-1)


def filter_logits(logits: Tensor, top_k: int = 0, top_p: float = 1.0) -> Tensor:
    """Set to -inf all logits but the `top_k` largest (0: all stay).

    Among those, the most probable are kept until their probabilities sum to `top_p`.
    """
    if 0 < top_k < logits.shape[-1]:
        smallest = logits.topk(top_k).values[..., -1:]
        logits = logits.masked_fill(logits < smallest, -torch.inf)
    if top_p < 1:
        ordered, order = logits.sort(dim=-1, descending=True)
        before = ordered.softmax(dim=-1).cumsum(dim=-1) - ordered.softmax(dim=-1)
        dropped = (before > top_p).scatter(-1, order, before > top_p)
        logits = logits.masked_fill(dropped, -torch.inf)
    return logits
