"""The model in PyTorch, in float32: the oracle of every export, and the test vectors that it leaves in a bundle."""
