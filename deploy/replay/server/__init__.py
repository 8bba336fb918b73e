"""The Reverb server's process, in a Python environment of its own because Reverb needs TensorFlow.

`serve.py` and `stock_client.py` run in that environment and are the only files that import `reverb`. Begin with
`process.py`, which starts and stops the server; `provision.py` builds the environment.
"""
