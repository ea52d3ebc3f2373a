"""How a checkpoint wants to be asked: chat template, generation settings, defaults."""
