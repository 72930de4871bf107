"""EndoGen (Liu et al., MICCAI 2025): a transformer that writes a clip's codes one after another."""

from medsora.baselines.endogen.model import EndoGen

__all__ = ["EndoGen"]
