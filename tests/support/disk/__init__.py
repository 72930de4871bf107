"""Disks that are full and reads that fail."""
