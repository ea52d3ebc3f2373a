"""What lies in a checkpoint or an adapter: JSON side files, safetensors, torch files. Knows no model."""
