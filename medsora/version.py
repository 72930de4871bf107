"""The version of MedSora."""

__version__ = "0.1.0"
