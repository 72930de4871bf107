"""Training the flow prior's encoder by self-supervision: `python -m medsora.training.dino`; see `loop.py`."""
