"""Behaviours of a matrix: the same episodes in every cell, as paths and as films, with a player.

It may import matrix, run and render. Begin with `play.py`; data go `play` -> `films` -> `markup`, or -> `pictures`.
"""
