"""Endora (Li et al., MICCAI 2024): a video diffusion transformer on per-frame latents."""

from medsora.baselines.endora.model import Endora

__all__ = ["Endora"]
