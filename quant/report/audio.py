"""What the models heard, for a page that asks for nothing else: short clips as FLAC in the page itself."""

from __future__ import annotations

import base64
import io
from collections.abc import Iterable, Sequence

import av
import numpy as np
from numpy.typing import NDArray

from dasheng_edge.quant.compare.record import ClipTexts
from dasheng_edge.runtime.clips.clips import Clip
from dasheng_edge.runtime.errors import DashengEdgeError

MAX_CLIP_S = 30.0
MAX_BYTES = 2_000_000  # of a page: some ten clips of 10 s
RATE_HZ = 16_000  # what the models hear


def embedded(shown: Iterable[ClipTexts], clips: Sequence[Clip]) -> dict[str, str]:
    """Addresses that hold the audio of clips, by id: of the short ones, the first that a page may carry.

    A clip that cannot be read any more cannot be heard; what was measured of it is in the page.
    """
    by_id, addresses, left = {clip.id: clip for clip in clips}, {}, MAX_BYTES
    for texts in shown:
        if texts.clip not in by_id or texts.seconds > MAX_CLIP_S:
            continue
        try:
            data = _flac(by_id[texts.clip].read(RATE_HZ))
        except DashengEdgeError:
            continue
        address = f"data:audio/flac;base64,{base64.b64encode(data).decode('ascii')}"
        if (left := left - len(address)) < 0:
            break
        addresses[texts.clip] = address
    return addresses


def _flac(samples: NDArray[np.float32]) -> bytes:
    """A file of 16 bits, mono; samples [samples] between -1 and 1."""
    whole = np.clip(np.rint(samples * 32767), -32768, 32767).astype(np.int16)
    file = io.BytesIO()
    with av.open(file, "w", format="flac") as container:
        stream = container.add_stream("flac", rate=RATE_HZ, layout="mono")
        frame = av.AudioFrame.from_ndarray(whole[None], format="s16", layout="mono")
        frame.sample_rate = RATE_HZ
        container.mux([*stream.encode(frame), *stream.encode(None)])
    return file.getvalue()
