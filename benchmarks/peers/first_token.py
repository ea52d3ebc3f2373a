"""The runtime from its import to the first token of a caption, which it prints: see `latency`.

python -m benchmarks.peers.first_token BUNDLE CLIP THREADS
"""

from __future__ import annotations

import sys

from dasheng_edge.runtime import Captioner
from dasheng_edge.runtime.bundle.manifest import Sampling
from dasheng_edge.runtime.engine_options import EngineOptions


def main() -> int:
    """Print the id of the token, and end."""
    bundle, clip, threads = sys.argv[1:]
    options = EngineOptions(weights="mapped").changed(threads=int(threads))
    with Captioner.open(bundle, options=options, check_sha256=False) as captioner:
        print(*captioner.caption(clip, max_new_tokens=1, sampling=Sampling()).tokens, flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())
