"""transformers' whole decoder in float32 with the merged weights: what the layer-by-layer reference must equal."""

from __future__ import annotations

from typing import Any

import torch

from dasheng_edge.export.adapter.merge import MergedTensors
from dasheng_edge.export.reference.decoder import decoder_config, decoder_modules


def whole_decoder(merged: MergedTensors) -> Any:
    spec = merged.checkpoint.decoder
    assert spec is not None
    config, modules = decoder_config(spec), decoder_modules(spec)
    with torch.device("meta"):
        decoder = modules["model"](config)
    decoder.model.rotary_emb = modules["rotary"](config)  # its buffer is in no checkpoint
    state = merged.state_dict("decoder.")
    if merged.tied:
        state["lm_head.weight"] = state["model.embed_tokens.weight"]
    decoder.load_state_dict(state, assign=True)
    return decoder.eval().requires_grad_(requires_grad=False)
