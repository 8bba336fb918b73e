"""The report of a matrix: statistics, figures, tables and one HTML page.

It may import matrix and run. Begin with `analyse.py`; data go `read` -> `analyse` -> `contents` -> `page` and `files`.
"""
