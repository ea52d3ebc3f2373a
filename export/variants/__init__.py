"""The members of the family: a file for each encoder and one table of all that differs between them.

Imports the files that a checkpoint consists of, and the runtime's facts; the rest of the exporter stands on it.
"""
