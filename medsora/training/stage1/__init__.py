"""Stage 1: fine-tune the frequency-compensated VAE (§3.3, Eq. 16)."""
