"""The reference that holds one layer at a time equals transformers' whole model."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from dasheng_edge.export.adapter.merge import MergedTensors
from dasheng_edge.export.checkpoint.checkpoint import open_checkpoint
from dasheng_edge.export.reference.decoder import ReferenceDecoder, greedy_texts
from dasheng_edge.runtime.bundle.golden import AUDIO_MARK
from tests.fixtures.tiny_checkpoint import write_tiny_checkpoint
from tests.fixtures.whole_decoder import whole_decoder

PROMPT = [382, 338, 198, 385, AUDIO_MARK, 386, 300, 301, 383, 198]
COUNT = 8


@pytest.fixture(scope="module", params=["midashenglm", "midashenglm-tokenizer"])
def merged(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> MergedTensors:
    folder = tmp_path_factory.mktemp("decoder") / "checkpoint"
    return MergedTensors(open_checkpoint(write_tiny_checkpoint(folder, variant=request.param)))


def whole_answer(decoder: Any, audio: torch.Tensor) -> tuple[torch.Tensor, list[int]]:
    """First logits and greedy tokens of transformers' own loop over whole sequences, without a cache."""
    embed, place = decoder.model.embed_tokens, PROMPT.index(AUDIO_MARK)
    parts = embed(torch.tensor(PROMPT[:place])), audio, embed(torch.tensor(PROMPT[place + 1 :]))
    rows = torch.cat(parts)[None]
    first: torch.Tensor | None = None
    tokens = []
    for _ in range(COUNT):
        logits = decoder(inputs_embeds=rows, use_cache=False).logits[0, -1]
        first = logits if first is None else first
        tokens.append(int(logits.argmax()))
        rows = torch.cat([rows, embed(torch.tensor([tokens[-1:]]))], dim=1)
    assert first is not None
    return first, tokens


def test_equals_the_whole_model_for_several_clips_at_once(merged: MergedTensors) -> None:
    generator = torch.Generator().manual_seed(0)
    hidden = merged.shape("decoder.model.norm.weight")[0]
    audio = [torch.randn(rows, hidden, generator=generator) for rows in (1, 7, 51)]
    whole = whole_decoder(merged)
    passes: list[int] = []

    got = greedy_texts(merged, PROMPT, audio, frozenset(), COUNT, passes.append)

    assert passes == [1] * COUNT
    distances = [abs(got[i].logits - got[i - 1].logits).max() for i in range(3)]
    assert min(distances) > 100 * 1e-4 * got[0].logits.std()  # else an audio that is ignored would pass
    for text, rows in zip(got, audio, strict=True):
        logits, tokens = whole_answer(whole, rows)
        assert text.prompt.tolist() == PROMPT
        assert text.tokens.tolist() == tokens
        assert torch.allclose(torch.from_numpy(text.logits), logits, atol=1e-4 * float(logits.std()), rtol=0)
        assert all(margin >= 0 for margin in text.margins)


def test_stops_at_a_stop_token_while_others_go_on(merged: MergedTensors) -> None:
    generator = torch.Generator().manual_seed(1)
    hidden = merged.shape("decoder.model.norm.weight")[0]
    audio = [torch.randn(5, hidden, generator=generator) for _ in range(2)]
    free = greedy_texts(merged, PROMPT, audio, frozenset(), COUNT)
    stop = int(free[0].tokens[2])

    stopped = greedy_texts(merged, PROMPT, audio, frozenset({stop}), COUNT)

    assert len(stopped[0].tokens) <= 3
    for text, whole in zip(stopped, free, strict=True):
        wanted = whole.tokens.tolist()
        assert text.tokens.tolist() == wanted[: wanted.index(stop) + 1 if stop in wanted else COUNT]


def test_only_one_layer_is_read_at_a_time(merged: MergedTensors, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[str] = []
    read = MergedTensors.state_dict

    def noted(self: MergedTensors, prefix: str) -> dict[str, torch.Tensor]:
        asked.append(prefix)
        return read(self, prefix)

    monkeypatch.setattr(MergedTensors, "state_dict", noted)
    ReferenceDecoder(merged)
    greedy_texts(merged, PROMPT, [torch.zeros(1, merged.shape("decoder.model.norm.weight")[0])], frozenset(), 1)

    spec = merged.checkpoint.decoder
    assert spec is not None
    assert asked == [f"decoder.model.layers.{index}." for index in range(spec.layers)]
