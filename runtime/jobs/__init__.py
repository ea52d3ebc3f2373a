"""Captions of many inputs: what they are, what is done of them, and how far it is. Imports everything but `cli`."""
