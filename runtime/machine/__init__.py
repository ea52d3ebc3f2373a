"""What this machine has and can do: devices, memory, time, energy. Imports only what stands beside the rooms."""
