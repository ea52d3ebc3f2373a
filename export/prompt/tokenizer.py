"""The tokenizer of a checkpoint as transformers has it, made of files that any version of transformers saved.

The files are read here, since transformers 4 refuses what 5 writes: special tokens that a model adds stand in a list
`extra_special_tokens` there and in a mapping `model_specific_special_tokens`, in 4 in a list
`additional_special_tokens` and in a mapping `extra_special_tokens`.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from dasheng_edge.export.files.json_files import StatedFields, checked, read_json
from dasheng_edge.export.files.names import SPECIAL_TOKENS, TOKENIZER, TOKENIZER_CONFIG
from dasheng_edge.runtime.errors import CheckpointFileError

_FIX = "take the file from the revision of the weights"


class TokenFields(StatedFields):
    """A token with how it is cut out of a text."""

    content: str
    single_word: bool = False
    lstrip: bool = False
    rstrip: bool = False
    normalized: bool = True
    special: bool = False


Token = str | TokenFields


class TokenizerFields(StatedFields):
    """What `tokenizer_config.json`, or the older `special_tokens_map.json`, says about special tokens."""

    bos_token: Token | None = None
    eos_token: Token | None = None
    unk_token: Token | None = None
    pad_token: Token | None = None
    sep_token: Token | None = None
    cls_token: Token | None = None
    mask_token: Token | None = None
    additional_special_tokens: list[Token] | None = None
    extra_special_tokens: list[Token] | dict[str, Token] | None = None
    model_specific_special_tokens: dict[str, Token] | None = None
    added_tokens_decoder: dict[str, TokenFields] | None = None

    def arguments(self) -> dict[str, Any]:
        """What transformers 4 is to be told of it; a field that is not stated has its class's default."""
        from tokenizers import AddedToken

        def token(stated: Token | None) -> Any:
            return AddedToken(**stated.model_dump()) if isinstance(stated, TokenFields) else stated

        single = {name: token(getattr(self, name)) for name in self.model_fields_set if name.endswith("_token")}
        extra = self.extra_special_tokens or {}
        listed = [*(self.additional_special_tokens or ()), *(extra if isinstance(extra, list) else ())]
        named = {**(extra if isinstance(extra, dict) else {}), **(self.model_specific_special_tokens or {})}
        return {
            **single,
            "additional_special_tokens": [token(stated) for stated in listed],
            "extra_special_tokens": {name: token(stated) for name, stated in named.items()},
            "added_tokens_decoder": {
                int(index): token(stated) for index, stated in (self.added_tokens_decoder or {}).items()
            },
        }


def read_tokenizer(folder: Path) -> Any:
    """The tokenizer in a folder, as an object of transformers.

    Raises:
        CheckpointFileError: a file does not parse, or states what the tokenizers library refuses.
    """
    from tokenizers import Tokenizer
    from transformers import Qwen2TokenizerFast

    content = read_json(folder / TOKENIZER) | {"truncation": None, "padding": None}
    stated = _stated(folder)
    try:
        backend = Tokenizer.from_str(json.dumps(content))
        return Qwen2TokenizerFast(tokenizer_object=backend, **stated.arguments())
    except (KeyboardInterrupt, SystemExit):
        raise
    except BaseException as error:  # a malformed file can raise anything; a panic of the library is no Exception
        raise CheckpointFileError(
            f"the tokenizer in {folder} cannot be loaded: {error}; take its files from the revision of the weights"
        ) from error


def _stated(folder: Path) -> TokenizerFields:
    """What the files say; the older one counts where the newer does not list its tokens, as in transformers."""
    path, older = folder / TOKENIZER_CONFIG, folder / SPECIAL_TOKENS
    config: Mapping[str, Any] = read_json(path, missing_ok=True)
    if "added_tokens_decoder" not in config and "model_specific_special_tokens" not in config:
        config = {**config, **read_json(older, missing_ok=True)}
    return checked(TokenizerFields, str(path), config, _FIX)
