"""Latents and prior features on disk, under keys that hash all they depend on."""
