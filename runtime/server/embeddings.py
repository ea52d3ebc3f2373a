"""`/v1/embeddings`: audio -> a vector for each clip, the mean of what the encoder makes of it."""

from __future__ import annotations

import asyncio
import base64
import tempfile
import threading
from typing import Annotated, Any, Literal

import numpy as np
from numpy.typing import NDArray
from pydantic import BeforeValidator, Field
from starlette.responses import JSONResponse, Response

from dasheng_edge.runtime.audio.read import read_audio

from .answers import Refusal, blamed
from .asking import Asking, in_memory
from .chat import AudioPart, Strict
from .models import Model
from .visits import Visit

MAX_CLIPS = 64
TOKENS_PER_S = 5.0  # of audio, in the units of conversations


def _listed(value: object) -> object:
    """One clip as a list of one; text is not embedded here.

    Raises:
        ValueError: it is text.
    """
    some = value if isinstance(value, list) else [value]
    if any(not isinstance(one, dict) for one in some):
        raise ValueError(
            "text is not embedded here; expected {type: input_audio, input_audio: {data: base64}}, or a list of them"
        )
    return some


class EmbeddingRequest(Strict):
    """Clips to embed."""

    model: str
    input: Annotated[
        list[AudioPart],
        BeforeValidator(_listed, json_schema_input_type=list[AudioPart] | AudioPart),
        Field(min_length=1, max_length=MAX_CLIPS),
    ]
    encoding_format: Literal["float", "base64"] | None = None
    dimensions: int | None = None
    user: Annotated[str, Field(max_length=1024)] | None = None


async def embed(asking: Asking, visit: Visit, request: EmbeddingRequest) -> Response:
    """Embed clips.

    Raises:
        Refusal: another size of vectors is asked for than the model's.
        DashengEdgeError: what `Embedder.embed_to` raises.
    """
    model, _ = asking.models.named(request.model)
    dim = model.bundle.manifest.encoder.embed_dim
    if request.dimensions not in (None, dim):
        raise Refusal(
            400, f"dimensions is {request.dimensions}; this model's vectors have {dim}", param="dimensions",
            code="invalid_value",
        )  # fmt: skip
    stopped, rows, seconds = threading.Event(), list[dict[str, Any]](), 0.0
    async with asking.place(model, visit) as deadline, blamed("input"):
        try:
            for index, part in enumerate(request.input):
                work = asyncio.to_thread(_mean, asking, model, part.input_audio.data, stopped)
                vector, audio_s = await deadline.wait(work)
                seconds += audio_s
                rows.append({"object": "embedding", "index": index, "embedding": _written(vector, request)})
        finally:
            stopped.set()
        tokens = round(TOKENS_PER_S * seconds)
        asking.count(model, visit, tokens, 0, seconds)
    usage = {"prompt_tokens": tokens, "total_tokens": tokens}
    return JSONResponse({"object": "list", "data": rows, "model": request.model, "usage": usage})


def _mean(asking: Asking, model: Model, data: bytes, stopped: threading.Event) -> tuple[NDArray[np.float32], float]:
    """The mean of a clip's frames, float32 [dim], in memory that does not grow with it; and its seconds."""
    assert model.embedder is not None
    total, count = np.zeros(model.embedder.dim), 0

    def take(frames: NDArray[np.float32]) -> None:
        nonlocal count
        if stopped.is_set():
            raise Refusal(499, "the client has gone")
        np.add(total, frames.sum(axis=0, dtype=np.float64), out=total)
        count += len(frames)

    rate_hz = model.bundle.manifest.front_end.sample_rate_hz
    stream = read_audio(in_memory(data), sample_rate_hz=rate_hz).limited(asking.limits.max_seconds, stopped.is_set)
    with model.embeds, tempfile.TemporaryFile() as spool:
        heard = model.embedder.embed_to(stream, take, spool)
    return (total / max(1, count)).astype(np.float32), heard.audio_s


def _written(vector: NDArray[np.float32], request: EmbeddingRequest) -> str | list[float]:
    if request.encoding_format == "base64":
        return base64.b64encode(vector.astype("<f4").tobytes()).decode()
    return [float(value) for value in vector]
