"""What the quantizations cost and bring."""
