"""From noise to videos: the pipeline, its conditions and the sampling command."""
