"""A checkpoint as files: configuration, tensors, sizes, and what is refused by name."""
