"""The command line: one module for each command. Nothing imports it."""
