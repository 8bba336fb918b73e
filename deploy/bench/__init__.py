"""Benchmarks of `fathom bench`, one module each; options and output are in `cli/bench.py`.

It may import matrix, run, replay and scheduling. Begin with `update.py`.
"""
