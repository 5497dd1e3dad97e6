"""What this machine is, and what `auto` means on it. It knows of no run."""
