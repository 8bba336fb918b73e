"""A run's metrics outside of its own files: Prometheus gauges and Weights & Biases.

It may import scheduling. Begin with `gauges.py`. Rows are written by `shared/metrics.py`.
"""
