"""What a run leaves on disk, and goes on from: no device work and no rank belongs here."""
