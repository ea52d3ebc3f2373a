"""Sounds that are synthesised or recorded, scenes of them, and what is asked and said about a scene."""
