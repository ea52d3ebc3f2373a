"""Training and scoring MiDashengLM-micro on those scenes."""
