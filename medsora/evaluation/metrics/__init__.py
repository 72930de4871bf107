"""The metrics: feature extractors and distances between two sets of clips."""
