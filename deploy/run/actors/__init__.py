"""Ray actors: each turns a role from `collector/` or `learner/`, or a service, into a process.

They hold clients, files and threads, and no algorithm. Begin with `role.py`, the base of all roles.
"""
