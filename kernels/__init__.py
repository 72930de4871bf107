"""How one Mamba-2 scan is computed: the recurrence, its matrix form, and the forms made for GPUs.

Importing this package needs nothing but torch; triton and mamba_ssm are imported only when they are used.
Other libraries probe for a package of this name, so it stays quick to import and carries no version.
"""

from kernels.dispatch import backends, mamba2_scan

__all__ = ["backends", "mamba2_scan"]
