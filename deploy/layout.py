"""Names of the files and folders in a run directory."""

STREAM = "stream"  # unrolls that the collectors inserted: a recording, or the tail that backs up replay
STATE = "state"  # newest states of each learner, from which a restarted process resumes
SNAPSHOTS = "snapshots"  # points from which `--resume` resumes the whole run
