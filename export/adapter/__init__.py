"""LoRA and DoRA adapters: what their configuration means, and their merge into the tensors of a checkpoint."""
