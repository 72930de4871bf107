"""Faults on purpose: runs that are killed, files that are damaged, inputs that are mutated.

`python -m tests.faults --help` lists the commands; docs/reliability.md says what they found.
"""
