"""What a GPU makes of bundles of true shape: a process for each stage, one record."""
