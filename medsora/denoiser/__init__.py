"""The denoiser: local attention, spiral Mamba over space and Mamba over time (§3.1)."""

from medsora.denoiser.model import MedSora, MedSoraOutput
from medsora.denoiser.parameters import parameter_table
from medsora.presets import PRESETS

__all__ = ["PRESETS", "MedSora", "MedSoraOutput", "parameter_table"]
