"""A bundle with fewer tokens: which they are, its decoder and golden vectors with them, and what that costs."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from dasheng_edge.runtime.bundle.bundle import DECODER, GOLDEN, Bundle
from dasheng_edge.runtime.bundle.golden import AUDIO_MARK, GoldenClip, read_golden, save_golden
from dasheng_edge.runtime.bundle.manifest import VocabularyFacts
from dasheng_edge.runtime.errors import PromptError
from dasheng_edge.runtime.gguf.check import MERGES, TOKEN_TYPES, TOKENS
from dasheng_edge.runtime.gguf.header import Header, read_header
from dasheng_edge.runtime.languages.table import NAMED
from dasheng_edge.runtime.program import stop_ids
from dasheng_edge.runtime.progress import Steps
from dasheng_edge.runtime.prompt.prompt import SPEECH_PROMPT, TRANSLATION_PROMPT, PromptBuilder
from dasheng_edge.runtime.text.model import TextModel, vocabulary

from .choice import Merges, choose
from .corpus import Counts, VocabularyOptions, corpus_bytes, count_tokens
from .gguf_cut import TABLES, new_ids, write_cut_gguf

UNUSED = 5  # type of a token that fills up the table
MANY = 0.01  # share of tokens that are spelled with several, which is worth a warning


@dataclass(frozen=True)
class CutBundle(Bundle):
    """A bundle some of whose files lie elsewhere."""

    files: Mapping[str, Path]

    def path(self, name: str) -> Path:
        return self.files[name] if name in self.files else super().path(name)


@dataclass(frozen=True)
class VocabularyCut:
    """A bundle whose tokens were cut."""

    bundle: CutBundle
    kept: NDArray[np.bool_]  # of each token of the source
    facts: VocabularyFacts
    warnings: tuple[str, ...]


def cut_vocabulary(
    source: Bundle, options: VocabularyOptions, decoder: Path, golden: Path, steps: Steps
) -> VocabularyCut:
    """Choose tokens, and write decoder and golden vectors with them to these paths.

    Raises:
        BundleKindError: the bundle has no decoder.
        QuantizeError: a corpus cannot be used, or so many tokens cannot be kept.
        GgufError, DecoderError, PromptError: the decoder cannot be used.
    """
    facts, path, clips = source.decoder_facts, source.path(DECODER), read_golden(source)
    step = steps.begin("vocabulary", corpus_bytes(options.corpora), "bytes")
    with vocabulary(path, facts) as model:  # which checks the file
        header = read_header(path, read_header(path).values)
        counts = count_tokens(options.corpora, model.tokenize, model.n_vocab, steps.progress.advance)
        needed = {*always_kept(header, model), *_of_prompts(model, source), *_of_golden(clips)}
    merges = Merges.read(header.array(TOKENS), header.array(MERGES))
    unused = np.array(header.array(TOKEN_TYPES)) == UNUSED
    kept = choose(merges, needed, unused, counts.all, options.size)
    held_out = _share(counts.held_out, choose(merges, needed, unused, counts.used, options.size))
    removed = int((~kept).sum()) * facts.hidden_size * sum(name in header.tensors for name in TABLES)
    fewer = {"vocab_size": int(kept.sum()), "parameters": facts.parameters - removed}
    write_cut_gguf(decoder, header, kept, facts.parameters - removed)
    save_golden(golden, [cut_clip(clip, kept) for clip in clips])
    # Without a program, which is made anew of what is written at the end.
    manifest = source.manifest.model_copy(update={"decoder": facts.model_copy(update=fewer), "program": None})
    said, warnings = _lost(counts, kept, held_out)
    step.end(size=decoder.stat().st_size, note=f"{kept.sum():,} of {len(kept):,} tokens{said}")
    earlier = source.manifest.quantization and source.manifest.quantization.vocabulary
    cut_facts = VocabularyFacts(
        tokens_before=earlier.tokens_before if earlier else len(kept),
        corpora={**(earlier.corpora if earlier else {}), **counts.sha256},
        held_out_share=held_out,
    )
    return VocabularyCut(
        CutBundle(source.folder, manifest, {DECODER: decoder, GOLDEN: golden}), kept, cut_facts, warnings
    )


def always_kept(header: Header, model: TextModel) -> Iterator[int]:
    """Bytes, which all else can be spelled with; control tokens and added words; what ends answers, or has a role."""
    for token, (text, kind) in enumerate(zip(header.array(TOKENS), header.array(TOKEN_TYPES), strict=True)):
        if kind != UNUSED and len(text.decode()) == 1:  # a byte is written as a character
            yield token
    # Also those that llama.cpp takes for control tokens by their text, such as </s>.
    yield from (*model.control_tokens.values(), *model.added_tokens.values(), *stop_ids(model))
    yield from (header.number(key) for key in header.values if key.endswith("_token_id"))


def _of_prompts(model: TextModel, source: Bundle) -> Iterator[int]:
    """What the chat template makes of the bundle's prompt, with and without a system text; the prompts for speech."""
    builder = PromptBuilder(model.chat_template, source.prompt_facts, model)
    for system in (None, "", "x"):
        with suppress(PromptError):  # whoever asks so is told
            yield from (token for token in builder.build(system=system).ids(AUDIO_MARK) if token != AUDIO_MARK)
    yield from builder.plain(TRANSLATION_PROMPT)
    for row in NAMED.split():
        yield from builder.plain(SPEECH_PROMPT.format(language=row.partition("=")[0]))


def _of_golden(clips: tuple[GoldenClip, ...]) -> Iterator[int]:
    for clip in clips:
        if clip.text is not None:
            yield from clip.text.prompt[clip.text.prompt >= 0].tolist()
            yield from clip.text.tokens.tolist()


def _share(counts: NDArray[np.int64], kept: NDArray[np.bool_]) -> float | None:
    """Of the tokens that were counted, those that are not kept; None if there were none."""
    total = int(counts.sum())
    return float(f"{int(counts[~kept].sum()) / total:.3g}") if total else None


def _lost(counts: Counts, kept: NDArray[np.bool_], held_out: float | None) -> tuple[str, tuple[str, ...]]:
    """What a step says of text that is spelled with more tokens, and warnings of it."""
    shares = {"the corpus": _share(counts.all, kept), "its held-out tenth, had that not been read": held_out}
    said = [f"{100 * share:.3g} % of {where}" for where, share in shares.items() if share is not None]
    if not said:
        return "; without a corpus, by their merges", ()
    if worst := max((share for share in shares.values() if share is not None and share > MANY), default=0.0):
        warning = (
            f"{100 * worst:.2g} % of the tokens of text like the corpus are gone and spelled with several others; give "
            "more text with --vocab, or a larger number"
        )
        return f"; spelled with more are {' and '.join(said)}", (warning,)
    return f"; spelled with more are {' and '.join(said)}", ()


def cut_clip(clip: GoldenClip, kept: NDArray[np.bool_]) -> GoldenClip:
    """Prompt, logits and tokens with the ids of what is kept, which all of its tokens are.

    The margins stay: the next best token may be gone, and then the reference preferred its own by more.
    """
    if (text := clip.text) is None:
        return clip
    ids = new_ids(kept)
    prompt = np.where(text.prompt < 0, text.prompt, ids[text.prompt])
    return replace(clip, text=replace(text, prompt=prompt, logits=text.logits[kept], tokens=ids[text.tokens]))
