"""How a checkpoint wants to be asked: what its files say, and for what they do not say one table of defaults."""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jinja2

from dasheng_edge.export.checkpoint.checkpoint import Checkpoint
from dasheng_edge.export.files.names import GENERATION
from dasheng_edge.export.options import PromptOverrides
from dasheng_edge.export.variants.specs import PromptDefaults
from dasheng_edge.export.variants.table import PUBLISHED, README_PROMPT, TRAINED_FURTHER
from dasheng_edge.runtime.bundle.golden import AUDIO_MARK
from dasheng_edge.runtime.bundle.manifest import PromptFacts
from dasheng_edge.runtime.errors import CheckpointFileError, CheckpointVariantError, ExportError, PromptError
from dasheng_edge.runtime.prompt.chat_template import compile_template, render_chat, template_names
from dasheng_edge.runtime.prompt.prompt import CONTENT_FORMS, chat_messages, question
from dasheng_edge.runtime.prompt.template_meter import TemplateBoundError

from .chat_template import AudioTokens, ChatTemplate, read_audio_tokens, read_chat_template
from .generation_config import LONGEST, GenerationConfig, read_generation_config
from .tokenizer import read_tokenizer

# What a published model is asked where the checkpoint says nothing, and what those are that somebody trained further.
PROMPT_DEFAULTS: Mapping[str, PromptDefaults] = {
    **{name: model.prompt for name, model in PUBLISHED.items() if model.prompt},
    **TRAINED_FURTHER,
}
CHOSEN = "chosen at export"
_PROBE = "\ue0f2"  # private use: no template gives it a meaning, and Python's repr escapes it


def prompt_facts(
    checkpoint: Checkpoint, overrides: PromptOverrides | None = None, *, adapted: bool = False
) -> PromptFacts:
    """Prompt defaults of a checkpoint; `adapted` tells that adapters are merged in.

    Raises:
        CheckpointFileError: a side file does not parse, contradicts another or states an impossible value.
        CheckpointVariantError: the tokenizer lacks a token that marks audio.
    """
    folder, asked = checkpoint.folder, overrides or PromptOverrides()
    template, audio, tokenizer = read_chat_template(folder), read_audio_tokens(folder), read_tokenizer(folder)
    _check_audio_tokens(checkpoint, tokenizer, audio)
    defaults = PROMPT_DEFAULTS[edition(checkpoint, adapted=adapted)]
    config, unused = read_generation_config(folder)
    facts = PromptFacts(
        prompt=defaults.prompt if asked.prompt is None else asked.prompt,
        audio_first=defaults.audio_first if asked.audio_first is None else asked.audio_first,
        audio_token=audio.audio,
        audio_bos_token=audio.bos,
        audio_eos_token=audio.eos,
        max_new_tokens=config.new_tokens(defaults.max_new_tokens),
        sampling=config.sampling(defaults.sampling),
        special_tokens=_special_tokens(folder, template, tokenizer),
    )
    system, where = _system(asked, defaults, written=_writes_system_turn(tokenizer, template.text, facts))
    wording = defaults.source if defaults.prompt == README_PROMPT else "MiDashengLM's published evaluation of captions"
    order = "audio before text" if facts.audio_first else "text before audio"
    notes = (
        f"chat template: {template.source}",
        f"prompt: {wording if asked.prompt is None else CHOSEN}",
        f"system turn: {where}",
        f"{order}: {defaults.source if asked.audio_first is None else CHOSEN}",
        *_generation_notes(config, facts, defaults),
        *(f"{GENERATION}: {name} is not used" for name in unused),
    )
    return facts.model_copy(update={"system": system, "notes": notes})


def edition(checkpoint: Checkpoint, *, adapted: bool = False) -> str:
    """Which row of PROMPT_DEFAULTS holds. Merged fine-tunes of a published model cannot be told from it."""
    if adapted:
        return "fine-tuned"
    widths = checkpoint.encoder.embed_dim, checkpoint.decoder.hidden_size if checkpoint.decoder else 0
    models = [model for model in checkpoint.variant.published if model.prompt and model.widths == widths]
    mel_buffers = any("front_end" in name.split(".") for name in checkpoint.ignored)
    models.sort(key=lambda model: model.mel_buffers != mel_buffers)  # 0804 stores them, 1021 does not
    return models[0].name if models else "own"


def golden_prompt(folder: Path, facts: PromptFacts) -> list[int]:
    """Token ids of the default prompt, rendered and encoded by transformers, with AUDIO_MARK for the audio.

    Raises:
        ExportError: the chat template fails, or does not put the audio in exactly once, or the prompt has control
            tokens in it.
    """
    tokenizer, template = read_tokenizer(folder), read_chat_template(folder).text
    for text in (facts.prompt, facts.system or ""):
        if typed := [token for token in tokenizer.all_special_tokens if token in text]:
            raise ExportError(
                f"the default prompt {text!r} has the control token {typed[0]} in it, which no text of a user ever "
                "becomes; leave it out, or put it into the chat template"
            )
    mark, bos, eos = facts.audio_token, facts.audio_bos_token, facts.audio_eos_token
    rendered = _rendered(tokenizer, template, facts, _probe(tokenizer, template, facts)[0])
    # As MiDashengLM's processor does; the ones that have a neighbour stay as they are.
    bare = re.compile(rf"(?<!{re.escape(bos)}){re.escape(mark)}(?!{re.escape(eos)})")
    ids = [int(token) for token in tokenizer(bare.sub(bos + mark + eos, rendered))["input_ids"]]
    mark_id = tokenizer.convert_tokens_to_ids(mark)
    if ids.count(mark_id) != 1:
        raise ExportError(
            f"the chat template of {folder.name} puts {mark} into the prompt {ids.count(mark_id)} times, expected "
            f"once; its rendering is {rendered!r}"
        )
    return [AUDIO_MARK if token == mark_id else token for token in ids]


def _probe(tokenizer: Any, template: str, facts: PromptFacts) -> tuple[tuple[bool, bool], str]:
    """The first form of content with which transformers renders the audio once and all texts, and what comes of it.

    If no form does so: the first form, and an empty text.
    """
    texts = {"prompt": _PROBE, "system": _PROBE if facts.system else None}
    for form in CONTENT_FORMS:
        try:
            rendered = _rendered(tokenizer, template, facts.model_copy(update=texts), form)
        except ExportError:
            continue
        if rendered.count(facts.audio_token) == 1 and rendered.count(_PROBE) == (2 if facts.system else 1):
            return form, rendered
    return CONTENT_FORMS[0], ""


def _rendered(tokenizer: Any, template: str, facts: PromptFacts, form: tuple[bool, bool]) -> str:
    messages = chat_messages(question(facts.prompt, facts, system=facts.system or ""), facts, form)
    _check_bounded(template, messages, tokenizer.special_tokens_map)
    try:
        return str(
            tokenizer.apply_chat_template(messages, chat_template=template, tokenize=False, add_generation_prompt=True)
        )
    except Exception as error:  # a template can fail in any way that Python can
        raise ExportError(f"the chat template cannot be rendered: {error}; correct it in the checkpoint") from error


def _check_bounded(template: str, messages: list[dict[str, object]], special_tokens: dict[str, Any]) -> None:
    """Render with the runtime first, which ends where a template does too much; transformers' would go on for ever."""
    try:
        render_chat(compile_template(template), messages, special_tokens)
    except PromptError as error:
        raise ExportError(str(error)) from error
    except TemplateBoundError as error:
        raise ExportError(f"the chat template cannot be rendered: {error}; correct it in the checkpoint") from error
    except Exception:  # noqa: BLE001, S110  # what else may go wrong is transformers' to say
        pass


def _check_audio_tokens(checkpoint: Checkpoint, tokenizer: Any, audio: AudioTokens) -> None:
    """All three must be control tokens, and the one that config.json names by its id the one that stands for audio."""
    control = {token.content: index for index, token in tokenizer.added_tokens_decoder.items() if token.special}
    for token in (audio.audio, audio.bos, audio.eos):
        if token not in control:
            others = ", ".join(name for name in control if "audio" in name.lower()) or "none"
            raise CheckpointVariantError(
                f"{checkpoint.folder}: the tokenizer has no control token {token}, so no audio can be put into a "
                f"prompt (control tokens that sound like it: {others}); name the right ones as audio_token, "
                "audio_bos_token and audio_eos_token in tokenizer_config.json"
            )
    stated, got = checkpoint.config.get("audio_token_id"), control[audio.audio]
    if stated is not None and stated != got:
        raise CheckpointFileError(
            f"{checkpoint.folder}: config.json says audio_token_id {stated!r}, tokenizer.json has {audio.audio} at "
            f"{got}; take both from one revision"
        )


def _special_tokens(folder: Path, template: ChatTemplate, tokenizer: Any) -> dict[str, str | list[str]]:
    """Of the special tokens that transformers hands to a template, those that this one asks for."""
    try:
        names = template_names(template.text)
    except jinja2.TemplateError as error:
        raise CheckpointFileError(
            f"{folder / template.source}: the chat template is not valid: {error}; download it again"
        ) from error
    return {name: value for name, value in tokenizer.special_tokens_map.items() if name in names}


def _system(asked: PromptOverrides, defaults: PromptDefaults, *, written: bool) -> tuple[str | None, str]:
    """The system text, None if the template writes one (`written`) or none is wanted; and where it comes from."""
    if asked.system:
        return asked.system, CHOSEN
    if written:
        return None, "written by the chat template"
    if asked.system is not None:
        return None, f"none, {CHOSEN}"
    return defaults.system, f"{'' if defaults.system else 'none, '}{defaults.source}"


def _writes_system_turn(tokenizer: Any, template: str, facts: PromptFacts) -> bool:
    """Whether the template puts a system turn before the user's although none is given."""
    before_the_text = _probe(tokenizer, template, facts)[1].split(_PROBE)[0]
    return re.search(r"\bsystem\b", before_the_text) is not None


def _generation_notes(config: GenerationConfig, facts: PromptFacts, defaults: PromptDefaults) -> tuple[str, str]:
    silent = defaults.source if defaults.sampling.temperature else f"greedy, since {GENERATION} does not say"
    stated = config.max_new_tokens or config.max_length
    length = f"{GENERATION} states {stated}" if stated else "default"
    if stated and stated > LONGEST:
        length += ", which is taken for no limit"
    return (
        f"sampling: {silent if config.do_sample is None else GENERATION}",
        f"at most {facts.max_new_tokens} new tokens: {length}",
    )
