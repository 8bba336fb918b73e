"""Points from which a run, or one of its processes, resumes: snapshots of a run and the newest states of a learner.

It imports nothing else from `deploy` but names of files and modes. Begin with `snapshots.py`.
"""
