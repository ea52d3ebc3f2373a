"""Fewer tokens: which are kept, counted on a corpus, and a decoder with their rows. Imports the runtime alone."""
