"""A run's folder: config, log, report and trackers."""
