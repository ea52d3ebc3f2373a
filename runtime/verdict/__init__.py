"""Why a bundle that was verified differs: it is bad, or this machine is. Imports all but what stands above it."""
