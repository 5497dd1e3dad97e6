"""Studies of convergence in wall-clock time: grids of runs, their store, their workers."""
