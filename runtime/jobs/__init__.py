"""Many files at once, and the files that their results go to. Imports everything but `speed` and `cli`."""
