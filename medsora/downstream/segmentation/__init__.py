"""Polyp segmentation with few masks and unlabelled frames."""
