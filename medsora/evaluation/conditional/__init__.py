"""Do labels, first frames and joined films do what was requested? Measured on the phantom."""
