"""The replay server as the driver sees it: its process, its restarts, and who can reach its port.

It may import scheduling. Begin with `service.py`, which replaces a server that died; `server/` holds the Python
environment of Reverb. The clients of collectors and learners are in `shared/replay/`.
"""
