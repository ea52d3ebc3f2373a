"""What this machine is and has: processor, devices, memory, time, energy, the user's cache. Knows no engine."""
