"""Studies of convergence in wall-clock time, and reports of them and of the benchmarks."""
