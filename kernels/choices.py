"""Names of the scan's backends; importing this file loads no torch."""

FASTEST_FIRST = ("triton", "mamba_ssm", "torch", "reference")
