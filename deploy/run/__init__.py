"""One run: its processes, its supervision, its directory, and the same run inside one process.

It may import recovery, replay, scheduling and telemetry, and only `actors/`, `launch.py` and `supervisor.py` know Ray.
Begin with `launch.py` (a distributed run) or `in_process.py`; `supervisor.py` restarts what died.
"""
