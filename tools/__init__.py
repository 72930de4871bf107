"""Programs for maintainers: `python -m tools.NAME`."""
