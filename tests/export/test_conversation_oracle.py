"""Conversations, with their history in the cache, against the float32 reference, which computes each from scratch."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import torch

from dasheng_edge.export.adapter.merge import MergedTensors
from dasheng_edge.export.checkpoint.checkpoint import open_checkpoint
from dasheng_edge.export.reference.encoder import load_encoder, load_projector
from dasheng_edge.export.variants.spectrograms import LogMel
from dasheng_edge.runtime import Captioner, ChatOptions, Message
from tests.fixtures.whole_decoder import whole_decoder

COUNT = 8
TURNS = ("Are the two speakers the same?", 0, "or", 1), (1, "Why?"), ("So?",), ("And now?", 2, 0)


def test_replies_are_those_of_the_reference(captioner: Captioner, tiny_checkpoint: Path) -> None:
    from transformers import PreTrainedTokenizerFast

    merged = MergedTensors(open_checkpoint(tiny_checkpoint))
    decoder: Any = whole_decoder(merged)
    log_mel = LogMel(captioner.bundle.manifest.front_end)
    encoder, projector = load_encoder(merged), load_projector(merged)
    clips = [np.random.default_rng(i).normal(0, 0.1, 16_000 * (i + 1)).astype(np.float32) for i in range(3)]
    with torch.inference_mode():
        audio = [projector(encoder(log_mel(torch.from_numpy(clip)[None]), len(clip)))[0] for clip in clips]
    tokenizer: Any = PreTrainedTokenizerFast(tokenizer_file=str(tiny_checkpoint / "tokenizer.json"))
    template = (tiny_checkpoint / "chat_template.jinja").read_text()
    mark, ends = tokenizer.convert_tokens_to_ids("<|AUDIO|>"), captioner.parts.decoder.is_end
    ours, theirs = [Message("system", "Be brief.")], [{"role": "system", "content": "Be brief."}]
    heard: list[torch.Tensor] = []

    for turn in TURNS:
        ours.append(Message("user", [part if isinstance(part, str) else (clips[part], 16_000) for part in turn]))
        parts = [{"type": "text", "text": part} if isinstance(part, str) else {"type": "audio"} for part in turn]
        theirs.append({"role": "user", "content": parts})  # type: ignore[dict-item]
        heard += [audio[part] for part in turn if isinstance(part, int)]
        reply = captioner.chat(ours, ChatOptions(COUNT))

        ids = tokenizer.apply_chat_template(theirs, chat_template=template, add_generation_prompt=True)
        places = iter(heard)
        embed = decoder.model.embed_tokens
        rows = torch.cat([next(places) if token == mark else embed(torch.tensor([token])) for token in ids])
        tokens: list[int] = []
        with torch.inference_mode():
            while len(tokens) < COUNT and not (tokens and ends(tokens[-1])):
                tokens.append(int(decoder(inputs_embeds=rows[None], use_cache=False).logits[0, -1].argmax()))
                rows = torch.cat([rows, embed(torch.tensor(tokens[-1:]))])
        assert list(reply.tokens) == [token for token in tokens if not ends(token)]
        assert reply.usage.prompt_tokens == len(ids) - len(heard) + sum(map(len, heard))

        assert len(ours) == 2 or reply.usage.cached_tokens > len(ids) / 2
        ours.append(Message("assistant", reply.text))
        theirs.append({"role": "assistant", "content": reply.text})
