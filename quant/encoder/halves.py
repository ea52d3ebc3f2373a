"""What graphs that multiply in float16 cost on a GPU, computed on this CPU.

Of micro on an H200, patches differed from the reference by 4.46e-4 where this says 4.60e-4, and the graph for CPUs, in
which weights alone are rounded, 1.85e-4. Nothing follows from that one: weights that were trained in bfloat16 fit.
"""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path

from dasheng_edge.runtime.audio.encoder import Encoder, Projector
from dasheng_edge.runtime.audio.front_end import FrontEnd
from dasheng_edge.runtime.bundle.bundle import CUDA_GRAPHS, ENCODER, PROJECTOR
from dasheng_edge.runtime.bundle.front_end_spec import FrontEndSpec
from dasheng_edge.runtime.bundle.golden import GoldenClip
from dasheng_edge.runtime.deviation import relative_rms

from .graphs import load_graph, save_graph, to_cuda


def halves_errors(
    spec: FrontEndSpec, place: Callable[[str], Path], clips: Sequence[GoldenClip], threads: int
) -> dict[str, float]:
    """Largest relative RMS of `patches`, and of `embeddings` where there is a projector, by the graphs for GPUs.

    `place` says where a file of the bundle is. Nothing where it has no such graphs.
    """
    names = [name for name, own in CUDA_GRAPHS.items() if place(own).is_file()]
    if ENCODER not in names:
        return {}
    with tempfile.TemporaryDirectory(prefix="halves-", dir=place(ENCODER).parent) as folder:
        for name in names:
            model = load_graph(place(name))
            to_cuda(model, emulated=True)
            save_graph(model, Path(folder) / name)
        front_end = FrontEnd(spec, threads=threads)
        encoder = Encoder(Path(folder) / ENCODER, spec, threads=threads)
        patches = [encoder.patches(front_end.features([clip.samples])) for clip in clips]
        errors = {"patches": max(map(relative_rms, patches, [clip.patches for clip in clips]))}
        texts = [clip.text for clip in clips if clip.text]
        if PROJECTOR in names and texts:
            projector = Projector(Path(folder) / PROJECTOR, spec, threads=threads)
            wanted = [text.embeddings for text in texts]
            errors["embeddings"] = max(map(relative_rms, map(projector.embeddings, patches), wanted))
        return errors
