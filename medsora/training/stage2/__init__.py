"""Stage 2: train the denoiser on latents (Eq. 17) with flow alignment (§3.2)."""
