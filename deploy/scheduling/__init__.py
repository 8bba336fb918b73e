"""Processes and their resources: the Ray cluster, shares of GPUs, reservations, and the end of processes.

The package imports nothing else from `deploy`. Begin with `placement.py`, which assigns resources to roles.
"""
