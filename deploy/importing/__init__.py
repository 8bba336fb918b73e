"""Data sets of other projects as recorded streams, on which learners train.

It imports nothing else from `deploy`. Begin with `stream.py`; each other module reads the files of one project.
"""
