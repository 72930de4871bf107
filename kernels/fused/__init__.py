"""The scan and the steps of a block as Triton kernels for GPUs; `plan` decides what they serve."""
