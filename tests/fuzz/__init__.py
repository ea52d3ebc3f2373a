"""Mutated inputs of every kind, used in processes of their own, and what became of them: `python -m tests.fuzz`."""
