"""Who may ask: keys of the API, the names by which this server is called, and the pages that may call it."""

from __future__ import annotations

import hashlib
import hmac
import ipaddress
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from urllib.parse import urlsplit

from dasheng_edge.runtime.errors import ConfigError

from .answers import Refusal

KEY_VARIABLE = "DASHENG_EDGE_API_KEY"
OPEN_PATHS = ("/", "/health", "/ready")  # that tell nothing
MIN_KEY = 16  # characters: shorter ones can be guessed
_MAX_FILE = 1 << 20


@dataclass(frozen=True)
class Keys:
    """The keys that are accepted, as SHA-256, by what the log calls them."""

    digests: Mapping[str, bytes] = field(default_factory=dict)

    @classmethod
    def read(cls, place: str | None, environ: Mapping[str, str] | None = None) -> Keys:
        """From a file with a key on each line, or from the environment: `place` is "env", or None to look there.

        Raises:
            ConfigError: the file cannot be read, or there is no key, or one that is too short.
        """
        environ = os.environ if environ is None else environ
        if place is None and KEY_VARIABLE not in environ:
            return cls()
        if place in (None, "env"):
            origin, text = f"${KEY_VARIABLE}", environ.get(KEY_VARIABLE, "")
        else:
            origin, text = str(place), _text_of(Path(str(place)))
        lines = [line.strip() for line in text.splitlines()]
        keys = [line for line in lines if line and not line.startswith("#")]
        if not keys:
            raise ConfigError(f"{origin} holds no key; expected one on each line, of {MIN_KEY} characters at least")
        for number, key in enumerate(keys, 1):
            if len(key) < MIN_KEY or not key.isascii() or any(character.isspace() for character in key):
                raise ConfigError(
                    f"{origin}: key {number} has {len(key)} characters; expected at least {MIN_KEY}, in ASCII and "
                    "without blanks, such as `openssl rand -hex 24` prints"
                )
        return cls({f"key{number}": _digest(key) for number, key in enumerate(keys, 1)})

    def owner(self, key: str | None) -> str | None:
        """Whose key this is; None: nobody's. Takes as long for each."""
        given, owner = _digest(key or ""), None
        for name, digest in self.digests.items():
            if hmac.compare_digest(given, digest):
                owner = name
        return owner


def _text_of(path: Path) -> str:
    try:
        if path.stat().st_size > _MAX_FILE:
            raise ConfigError(f"{path} has more than {_MAX_FILE} bytes; expected a file with a key on each line")
        return path.read_text("utf-8")
    except (OSError, UnicodeDecodeError, ValueError) as error:
        raise ConfigError(f"cannot read keys from {path}: {getattr(error, 'strerror', None) or error}") from error


def _digest(key: str) -> bytes:
    return hashlib.sha256(key.encode("utf-8", "surrogateescape")).digest()


@dataclass(frozen=True)
class Policy:
    """Which requests are let in: by key, by the name of the server, and by the page that sends them.

    A page of another site can have a browser send requests here, with the address of this machine in its own name
    (DNS rebinding). It has no key, and cannot choose the headers Host and Origin.
    """

    keys: Keys
    host: str  # that the server listens on
    origins: Sequence[str] = ()  # pages of other sites that may ask

    def check(self, headers: Mapping[str, str]) -> None:
        """Refuse what a page of another site had a browser send.

        Raises:
            Refusal: it did.
        """
        host = headers.get("host", "")
        if not self.keys.digests and not self._is_own(_name_of(host)):
            raise Refusal(
                421, f"this server is not called {_name_of(host)!r}; use its address, or localhost", code="wrong_host"
            )
        if (origin := headers.get("origin")) is not None and not self.allows(origin, host):
            raise Refusal(
                403, "pages of other sites may not use this server; see its option --allow-origin", code="wrong_origin"
            )

    def tenant(self, path: str, headers: Mapping[str, str], client: str) -> str:
        """Who asks: one whose requests take turns with others'.

        Raises:
            Refusal: it has no key.
        """
        if not self.keys.digests or path in OPEN_PATHS:
            return client
        scheme, _, key = headers.get("authorization", "").partition(" ")
        owner = self.keys.owner(key.strip()) if scheme.lower() == "bearer" else None
        if owner is None:
            raise Refusal(
                401, "no such API key; send one as `Authorization: Bearer KEY`", code="invalid_api_key",
                headers={"www-authenticate": "Bearer"},
            )  # fmt: skip
        return owner

    def allows(self, origin: str, host: str) -> bool:
        """Whether a page from this origin may ask: the server's own, or one that was allowed."""
        return origin in self.origins or (bool(host) and urlsplit(origin).netloc.lower() == host.lower())

    def _is_own(self, name: str) -> bool:
        if name in ("localhost", self.host.lower()):
            return True
        try:
            ipaddress.ip_address(name)
        except ValueError:
            return False
        return True


def _name_of(host: str) -> str:
    """A Host header without its port."""
    try:
        return (urlsplit(f"//{host}").hostname or "").rstrip(".").lower()
    except ValueError:
        return ""


def is_loopback(host: str) -> bool:
    """Whether only programs of this machine reach a server on this host."""
    if host.lower() == "localhost":
        return True
    try:
        return ipaddress.ip_address(host.strip("[]")).is_loopback
    except ValueError:
        return False
