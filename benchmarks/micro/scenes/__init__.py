"""Sounds, speech, rooms and captions: scenes that are made from a seed, and their references."""
