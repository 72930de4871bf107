"""`--dry-run`: what a run needs, counted without training."""
