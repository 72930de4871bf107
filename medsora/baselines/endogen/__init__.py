"""EndoGen (Liu et al., MICCAI 2025): an autoregressive transformer over a clip's codes."""

from medsora.baselines.endogen.model import EndoGen

__all__ = ["EndoGen"]
