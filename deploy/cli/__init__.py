"""The `fathom` command: one module for each sub-command, the options they share, and what they print.

It may import every other package, but late, inside functions, so that `fathom --help` needs neither JAX nor Ray.
Begin with `main.py`.
"""
