"""The members of the model family: which one a checkpoint is, and what its tensors are called."""
