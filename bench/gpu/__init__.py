"""What runs on a card, or counts what a step asks of one; each file is a command."""
