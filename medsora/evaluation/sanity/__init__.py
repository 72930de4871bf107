"""Checks of the metrics themselves: degraded clips and trivial baselines."""
