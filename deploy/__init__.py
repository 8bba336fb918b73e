"""Everything around the pure code in `shared`, `collector` and `learner`: commands, processes, files, clusters.

Imports go one way: cli -> report, bench, render -> matrix -> run -> recovery, replay, telemetry -> scheduling. `ray` is
imported here alone. Begin with `cli/main.py` for a command, or with `run/launch.py` for a run.
"""
