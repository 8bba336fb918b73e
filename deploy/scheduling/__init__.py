"""Where processes run and how they end: the Ray cluster, shares of GPUs, reserved resources, killed processes.

It imports nothing else from `deploy`. Begin with `placement.py`, pure functions that decide which role gets what.
"""
