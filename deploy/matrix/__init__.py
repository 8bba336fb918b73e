"""Matrices: every run of collector depths x learners x seeds, and the results of these runs.

The package may import run, recovery and scheduling. Begin with `expand.py`, which expands a matrix; `execute.py`
executes it.
"""
