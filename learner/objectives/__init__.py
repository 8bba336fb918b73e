"""Objectives of learners: a file for each. `registry.py` finds them by name, a user's own by its dotted path.

An objective is a value of the class `Objective` (`base.py`): networks, labels, losses and the score of actions. It may
import `shared` and the pure functions beside this package. Begin with `base.py`, then read `contrastive.py`.
"""
