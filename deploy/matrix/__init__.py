"""A matrix: every run of collector depths x learner depths x seeds, and what came of them.

It may import run and scheduling. Begin with `config.py`, which expands a matrix to its runs; `execute.py` runs them.
"""
