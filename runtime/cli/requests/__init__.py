"""What is asked, and where answers go, as options say; for commands."""
