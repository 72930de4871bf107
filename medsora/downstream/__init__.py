"""What generated clips are good for: classification, segmentation and 3-D reconstruction."""
