"""Configs and base weights that come with MedSora; `medsora.config.shipped` finds them."""
