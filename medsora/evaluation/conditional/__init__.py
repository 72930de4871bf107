"""Measurements of conditional sampling on the phantom: labels, first frames and joined films."""
