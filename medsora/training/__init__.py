"""Both stages, the caches they fill, and what a run writes."""
