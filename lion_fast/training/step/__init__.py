"""One training step as device work, and what executes it: no file, no word to anyone."""
