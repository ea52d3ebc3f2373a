"""Sets of clips: folders and manifests, ours and those of other tools. Stands on audio."""
