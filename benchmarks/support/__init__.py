"""What the benchmarks share: both wirings, a training step, measuring, inputs."""
