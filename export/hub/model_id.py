"""Names of models on the hub, as people write them: "owner/name", or the address of a page."""

from __future__ import annotations

import re
from dataclasses import dataclass
from difflib import get_close_matches
from pathlib import Path
from urllib.parse import unquote, urlsplit

from dasheng_edge.export.variants.table import EXPORTABLE
from dasheng_edge.runtime.errors import CheckpointNotFoundError

_PART = (
    r"(?!.*(?:--|\.\.))[A-Za-z0-9](?:[\w.-]{0,94}[A-Za-z0-9_])?"  # what the hub allows owners and models to be called
)
HUBS = ("huggingface.co", "www.huggingface.co", "hf.co")
_HOST = re.compile(r"[a-z0-9-]+(\.[a-z0-9-]+)+(:\d+)?|[a-z0-9-]+:\d+", re.ASCII)
_NAME = re.compile(f"{_PART}/{_PART}", re.ASCII)


@dataclass(frozen=True)
class ModelId:
    """A model on the hub."""

    name: str  # "owner/name"
    revision: str | None = None  # where an address says one
    host: str | None = None  # of the hub that an address says

    @property
    def model(self) -> str:
        """The name without its owner."""
        return self.name.partition("/")[2]


def parse_model_id(text: str) -> ModelId:
    """The model that is meant by "owner/name" or by the address of its page or of something in it.

    Raises:
        CheckpointNotFoundError: neither; it says what it seems to be.
    """
    text = text.strip()
    model = _from_address(text) if _is_address(text) else ModelId(text)
    if model and _NAME.fullmatch(model.name):
        return model
    if text.startswith((".", "/", "~", "\\")) or (text and _is_there(text)):
        why = "it is a path of this machine, which export takes as it is"
    else:
        why = f"expected OWNER/NAME or https://huggingface.co/OWNER/NAME; {did_you_mean(text)}"
    raise CheckpointNotFoundError(f"cannot pull {text!r}: {why}")


def _is_address(text: str) -> bool:
    """Whether it begins with a scheme or, as people copy it, with the host."""
    host, _, rest = text.partition("/")
    named = _HOST.fullmatch(host.lower()) and "/" in rest and not _is_there(text)
    return "://" in text or host.lower() in HUBS or bool(named)


def _is_there(text: str) -> bool:
    try:
        return Path(text).exists()
    except (OSError, ValueError):  # too long to be a path, or not one
        return False


def _from_address(text: str) -> ModelId | None:
    """The model of [https://]HOST/OWNER/NAME[/tree/REVISION[/FOLDER]]; a file's page or content does as well."""
    address = urlsplit(text if "://" in text else f"https://{text}")
    parts = [unquote(part) for part in address.path.split("/") if part]
    if len(parts) < 2 or parts[0] in {"datasets", "spaces", "api"}:
        return None
    revision = parts[3] if len(parts) > 3 and parts[2] in {"tree", "blob", "resolve", "raw", "commit"} else None
    return ModelId("/".join(parts[:2]), revision, address.netloc.rpartition("@")[2].lower())


def did_you_mean(name: str) -> str:
    """Names of published checkpoints that are like this name; all of them if none is."""
    models = {repository.partition("/")[2].lower(): repository for repository in EXPORTABLE}
    near = get_close_matches(name.rstrip("/").rpartition("/")[2].lower(), models, cutoff=0.7)
    if near:
        return f"did you mean {' or '.join(models[model] for model in near)}?"
    return f"published ones are {', '.join(EXPORTABLE)}."
