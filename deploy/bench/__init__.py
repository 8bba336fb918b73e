"""Benchmarks: what `fathom bench` measures, one module for each.

It may import run, replay and scheduling. Begin with `update.py`; options and output are in `cli/bench.py`.
"""
