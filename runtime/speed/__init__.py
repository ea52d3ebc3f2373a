"""How fast a bundle is on this machine, and which settings are fastest. Imports everything but `cli`."""
