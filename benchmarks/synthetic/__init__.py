"""Checkpoints, encoders and clips that are made up: true shapes, random values."""
