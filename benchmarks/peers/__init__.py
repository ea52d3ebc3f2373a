"""Programs that are measured beside each other, ours and others', most in processes of their own."""
