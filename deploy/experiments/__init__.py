"""Shipped experiments and matrices, which commands find by name; begin with `point_u_maze.yaml`."""
