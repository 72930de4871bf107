"""A page to play with a trained model in a browser: `python -m medsora.app --model RUN` (extra `app`)."""
