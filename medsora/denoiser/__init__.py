"""The denoiser: local attention, spiral Mamba over space and Mamba over time (§3.1)."""

from medsora.config.presets import PRESETS
from medsora.denoiser.model import MedSora, MedSoraOutput
from medsora.denoiser.parameters import parameter_table

__all__ = ["PRESETS", "MedSora", "MedSoraOutput", "parameter_table"]
