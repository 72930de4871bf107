"""What lies on disk: checkpoints, model folders, model cards and the hub."""
