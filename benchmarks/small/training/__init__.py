"""Training and scoring the encoder, projector and adapter of MiDashengLM-small."""
