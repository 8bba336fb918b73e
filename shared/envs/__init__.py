"""Environments: one interface, one registry, and one module for each family.

The package imports nothing else of ours but `shared.config`, `shared.errors` and `shared.types`. Begin with `base.py`,
the interface, and `registry.py`, which lists and makes environments; `brax_env.py` is the base of all bodies on brax.
"""
