"""What the model costs, measured here: `python -m benchmarks.NAME`."""
