"""Videos in: found (`reading`), checked (`checking`), split (`split`) and cut into clips (`clips`).

`phantom` is the procedural endoscopy that needs no data at all. `python -m medsora.data --help` lists the
commands.
"""
