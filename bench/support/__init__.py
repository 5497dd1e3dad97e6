"""What the benchmark files share: timing, rivals, traffic, processes; no benchmark of its own."""
