"""The pipeline end to end on the phantom: `make demo`."""
