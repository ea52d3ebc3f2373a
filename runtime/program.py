"""`program` of the manifest, as far as it follows from the decoder: prompts as parts, ends, sizes; and older bundles.

It is derived with the same `PromptBuilder` that the runtime asks with, when a bundle is written, and again when its
decoder is opened: a manifest that says otherwise is refused.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from dasheng_edge.runtime.bundle.bundle import DECODER, GOLDEN, GOLDEN_FLAT, Bundle
from dasheng_edge.runtime.bundle.golden import flat_golden, read_golden, save_flat_golden
from dasheng_edge.runtime.bundle.manifest import MANIFEST, SCHEMA_VERSION, Manifest, PromptFacts
from dasheng_edge.runtime.bundle.program import (
    AudioPart,
    Blanks,
    DecoderProgram,
    DefaultPrompt,
    Parts,
    Program,
    PromptProgram,
    TextPart,
    TokenPart,
    UserText,
    graph_inputs,
)
from dasheng_edge.runtime.bundle.writer import BundleWriter
from dasheng_edge.runtime.errors import BundleManifestError, OutputExistsError, PromptError
from dasheng_edge.runtime.gguf.check import BLOCKS, Sizes
from dasheng_edge.runtime.gguf.header import read_header
from dasheng_edge.runtime.progress import typed_path
from dasheng_edge.runtime.prompt.chat_template import MARK
from dasheng_edge.runtime.prompt.prompt import Audio, Piece, PromptBuilder
from dasheng_edge.runtime.text.model import TextModel, vocabulary

# What Python's `strip` takes for white space: all that a template's filters and methods may take off.
WHITE_SPACE = "".join(chr(point) for point in range(0x3001) if chr(point).isspace())
USER_TEXTS: tuple[UserText, ...] = ("prompt", "system")
_CORE = "x"  # a user's text; which one is no matter, since a mark stands for it


def program_of(manifest: Manifest, decoder: Path | None) -> Program:
    """The program of a bundle that is being written; `decoder` is its GGUF file.

    Raises what `vocabulary` and `PromptBuilder` raise.
    """
    if decoder is None or manifest.decoder is None:
        return _program(manifest, None)
    with vocabulary(decoder, manifest.decoder) as model:
        return _program(manifest, model, decoder)


def check_program(bundle: Bundle, model: TextModel, builder: PromptBuilder) -> None:
    """Refuse a bundle whose manifest says something else of prompts, ends and sizes than its decoder.

    Raises:
        BundleManifestError: it does.
    """
    stated = bundle.manifest.program
    if stated is None:
        return
    wanted = _program(bundle.manifest, model, bundle.path(DECODER), builder)
    if wrong := [key for key in Program.model_fields if getattr(stated, key) != getattr(wanted, key)]:
        raise BundleManifestError(
            f"{bundle.path(MANIFEST)}: program.{wrong[0]} is not what follows from the decoder; "
            f"`dasheng-edge upgrade {typed_path(bundle.folder)}` writes it anew"
        )


def _program(
    manifest: Manifest, model: TextModel | None, decoder: Path | None = None, builder: PromptBuilder | None = None
) -> Program:
    inputs = graph_inputs(manifest.front_end, decodes=manifest.decoder is not None)
    facts = manifest.prompt
    if model is None or decoder is None or facts is None:
        return Program(inputs=inputs)
    builder = builder or PromptBuilder(model.chat_template, facts, model)
    return Program(
        inputs=inputs,
        sampler=facts.sampling.steps,
        stop_ids=stop_ids(model),
        prompts=prompts_of(builder, facts),
        decoder=sizes_of(decoder),
    )


def stop_ids(model: TextModel) -> tuple[int, ...]:
    """The tokens that end an answer, in ascending order. Each is a special token, or one that the GGUF names."""
    named = (text for key, text in model.metadata.items() if key.endswith("_token_id") and text.isdecimal())
    special = {*model.control_tokens.values(), *model.added_tokens.values(), *map(int, named)}
    return tuple(sorted(token for token in special if token < model.n_vocab and model.is_end(token)))


def sizes_of(decoder: Path) -> DecoderProgram:
    """Sizes of a decoder, by the header of its file."""
    header = read_header(decoder)
    sizes, table = Sizes.stated(header, header.text("general.architecture")), header.tensors["token_embd.weight"]
    values, size = BLOCKS[table.kind]
    return DecoderProgram(
        kv_width=sizes.kv_heads * sizes.head_width,
        feed_forward_width=sizes.inner,
        tied_head="output.weight" not in header.tensors,
        embedding_bytes=math.prod(table.shape) // values * size,
    )


def prompts_of(builder: PromptBuilder, facts: PromptFacts) -> PromptProgram:
    """How prompts are put together without the template."""
    default, system = _default(builder), (facts.system,) if facts.system else ()
    layouts = [(_CORE, *system), (_CORE,), (_CORE, _CORE)]
    users = [1, 1, 2]  # how many of these texts are a user's
    parts = [_parts(builder, texts, count) if default else None for texts, count in zip(layouts, users, strict=True)]
    blanks: list[set[Blanks]] = [set(), set()]
    for texts, count, there in zip(layouts, users, parts, strict=True):
        for index in range(count if there else 0):
            blanks[index].add(_blanks(builder, texts, index))
    ends: list[Blanks] = [found.pop() if len(found) == 1 else "refused" for found in blanks]
    return PromptProgram(
        default=default, own_prompt=parts[0], without_system=parts[1], own_system=parts[2], prompt_blanks=ends[0],
        system_blanks=ends[1],
    )  # fmt: skip


def _pieces(builder: PromptBuilder, texts: Sequence[str]) -> list[Piece] | None:
    try:
        return builder.pieces(texts)
    except PromptError:
        return None


def _default(builder: PromptBuilder) -> DefaultPrompt | None:
    """None where there is no default prompt that is the same every day."""
    if builder.asks_time:
        return None
    try:
        before, after = builder.build().around_audio()
    except PromptError:  # whoever asks is told
        return None
    return DefaultPrompt(before=before, after=after)


def _parts(builder: PromptBuilder, texts: Sequence[str], users: int) -> Parts | None:
    """What the template makes of texts, of which the first are a user's; None where a run of text holds two of them."""
    parts: list[TokenPart | AudioPart | TextPart] = []
    for piece in _pieces(builder, texts) or ():
        marks = [MARK.format(index) for index in range(users)]
        count = sum(map(piece.count, marks)) if isinstance(piece, str) else 0
        if count > 1:
            return None
        if isinstance(piece, Audio):
            parts.append(AudioPart(audio=True))
        elif isinstance(piece, str) and count:
            index = next(index for index, mark in enumerate(marks) if mark in piece)
            prefix, suffix = (_with_default(part, texts, users) for part in piece.split(marks[index]))
            parts.append(TextPart(prefix=prefix, text=USER_TEXTS[index], suffix=suffix))
        else:
            ids = builder.plain(_with_default(piece, texts, users)) if isinstance(piece, str) else (piece,)
            if parts and isinstance(last := parts[-1], TokenPart):
                ids = (*last.ids, *ids)
                parts.pop()
            parts.append(TokenPart(ids=ids))
    return tuple(parts) or None


def _with_default(run: str, texts: Sequence[str], users: int) -> str:
    """A run of text, with what is no user's in it."""
    for index in range(users, len(texts)):
        run = run.replace(MARK.format(index), texts[index].strip())
    return run


def _blanks(builder: PromptBuilder, texts: Sequence[str], index: int) -> Blanks:
    """What becomes of white space at both ends of a text."""
    plain, mark = _pieces(builder, texts), MARK.format(index)
    found: set[Blanks] = set()
    for blank in (*WHITE_SPACE, WHITE_SPACE):
        changed = [*texts]
        changed[index] = f"{blank}{texts[index]}{blank}"
        pieces = _pieces(builder, changed)
        around = f"{blank}{mark}{blank}"
        kept = [piece.replace(mark, around) if isinstance(piece, str) else piece for piece in plain or ()]
        found.add("kept" if pieces == kept else "stripped" if pieces == plain else "refused")
    return found.pop() if len(found) == 1 and not builder.has_blank_tokens else "refused"


@dataclass(frozen=True)
class UpgradeReport:
    """What became of a bundle."""

    bundle: Bundle
    schema_before: int
    added: tuple[str, ...]  # empty: there was nothing to do, and nothing was written


def upgrade_bundle(folder: Path, out: Path | None = None, *, overwrite: bool = False) -> UpgradeReport:
    """Add what is missing to a bundle: in its place, or as `out`. It is replaced in one step, or not at all.

    Raises:
        BundleError: the bundle cannot be used, or its files are not what its manifest states.
        DecoderError: its decoder cannot be opened.
        OutputExistsError: `out` is there and `overwrite` is False; or the bundle's folder holds files of others.
        OutputWriteError: it cannot be written.
    """
    source = Bundle.open(folder)
    in_place = out is None or out.resolve() == folder.resolve()
    if out is not None and not in_place and out.resolve().is_relative_to(folder.resolve()):
        raise OutputExistsError(f"{out} lies in the bundle to be upgraded; choose another --out, or leave it out")
    manifest = source.manifest
    clips = read_golden(source)
    program = program_of(manifest, source.path(DECODER) if manifest.decoder else None)
    has_flat = GOLDEN_FLAT in manifest.files and source.path(GOLDEN_FLAT).read_bytes() == flat_golden(clips)
    added = [
        *([f"schema version {SCHEMA_VERSION}"] if manifest.schema_version < SCHEMA_VERSION else []),
        *(["program"] if manifest.program != program else []),
        *([] if has_flat else [GOLDEN_FLAT]),
    ]
    if not added:
        return UpgradeReport(source, manifest.schema_version, ())
    newer = manifest.model_copy(update={"schema_version": SCHEMA_VERSION, "program": program})
    with BundleWriter(folder if out is None else out, overwrite=overwrite or in_place) as writer:
        writer.take_over(source, link=in_place)
        save_flat_golden(writer.path(GOLDEN), clips)
        return UpgradeReport(writer.finish(newer), manifest.schema_version, tuple(added))
