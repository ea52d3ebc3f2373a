"""What a comparison measures, and what follows from it. Knows nothing of how it looks."""
