"""What a user set for good, and which bundle is meant; only the command line asks. Stands on machine and bundle."""
