"""Turns a MiDashengLM checkpoint into a bundle; needs the `export` extra."""
