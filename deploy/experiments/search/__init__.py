"""The search for tasks on which depth helps: its candidates, and what trains them; begin with `run.py`."""
