"""Downstream tasks for generated clips: classification, segmentation and 3-D reconstruction."""
