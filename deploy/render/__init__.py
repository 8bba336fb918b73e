"""Pictures and films of episodes.

It imports nothing else from `deploy`. Begin with `draw.py`.
"""
