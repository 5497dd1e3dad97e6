"""What is measured beside the steps: validation and probes, which leave the run as it was."""
