"""Saved models: checkpoints, model folders, model cards and the hub."""
