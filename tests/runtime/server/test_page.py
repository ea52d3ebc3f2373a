import base64
import hashlib
import re
import shutil
import subprocess
from collections import Counter
from html.parser import HTMLParser
from typing import Any

import pytest

from dasheng_edge.runtime.server.page import page
from tests.fixtures.asgi_client import Client

from .conftest import Run

TEXT = page().body.decode()
SCRIPT = TEXT.partition("<script>")[2].partition("</script>")[0]
STYLE = TEXT.partition("<style>")[2].partition("</style>")[0]
TABLE, CODE = SCRIPT.partition("\nconst LANGUAGE =")[::2]
STRINGS = re.findall(r'(?:^ {4}|, )(\w+): "', TABLE, re.MULTILINE)
VOID = {"meta", "link", "input", "path", "rect", "circle", "use", "br"}


class Elements(HTMLParser):
    """All elements with their attributes, and what text stands in which; complains about what is not closed."""

    def __init__(self) -> None:
        super().__init__()
        self.open: list[str] = []
        self.all: list[tuple[str, dict[str, str]]] = []
        self.texts: list[tuple[str, str]] = []
        self.feed(TEXT)
        self.close()
        assert not self.open

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.all.append((tag, {name: value or "" for name, value in attrs}))
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.all.append((tag, {name: value or "" for name, value in attrs}))

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        if data.strip():
            self.texts.append((self.open[-1], data.strip()))


ELEMENTS = Elements()


def values(name: str) -> list[str]:
    """Of an attribute, of all elements."""
    return [attributes[name] for _, attributes in ELEMENTS.all if name in attributes]


def test_is_small() -> None:
    assert len(page().body) < 100_000


def test_nothing_comes_from_elsewhere() -> None:
    addresses = set(re.findall(r"(?:\w+:)?//[\w.-]+\.\w+[\w./-]*", TEXT))
    assert addresses == {"http://www.w3.org/2000/svg"}  # a name, not a place
    for name in ("src", "href", "action", "srcset", "poster"):
        assert all(value.startswith(("#", "data:")) for value in values(name))
    assert "url(" not in STYLE
    assert "@import" not in STYLE


def test_the_policy_lets_run_what_is_in_it_and_nothing_else() -> None:
    policy = dict(part.strip().split(" ", 1) for part in page().headers["content-security-policy"].split(";"))
    for directive, text in (("script-src", SCRIPT), ("style-src", STYLE)):
        digest = base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()
        assert policy[directive] == f"'sha256-{digest}'"
    assert policy["default-src"] == policy["frame-ancestors"] == policy["base-uri"] == "'none'"
    assert policy["connect-src"] == "'self'"
    assert not [name for _, attributes in ELEMENTS.all for name in attributes if name.startswith("on")]
    assert not values("style")
    assert not re.search(r"innerHTML|outerHTML|insertAdjacentHTML|document\.write|\beval\b|new Function", SCRIPT)


def test_every_word_is_in_the_table_and_every_row_is_used() -> None:
    assert len(STRINGS) > 100
    assert not [key for key, times in Counter(STRINGS).items() if times > 1]
    used = set(values("data-t")) | set(values("data-label")) | set(re.findall(r'\bt\("(\w+)"', CODE))
    named = set(re.findall(r'"(\w+)"', CODE)) | set(re.findall(r"^  (\w+): \{", CODE, re.MULTILINE))
    assert used <= set(STRINGS)
    assert set(STRINGS) <= used | named
    assert {text for tag, text in ELEMENTS.texts if tag not in ("style", "script", "title", "noscript")} == {
        "dasheng-edge",
        "/",  # of the player's clock
    }


def test_what_is_meant_is_there() -> None:
    ids = values("id")
    assert len(ids) == len(set(ids))
    made = {f"task-{name}" for name in re.findall(r"^  (\w+): \{", CODE, re.MULTILINE)}
    assert set(re.findall(r'\$\("([\w-]+)"\)', CODE)) <= set(ids) | made
    assert set(values("aria-labelledby")) <= set(ids)
    icons = {one.removeprefix("i-") for one in ids if one.startswith("i-")}
    shown = {one.removeprefix("#i-") for one in values("href") if one.startswith("#i-")}
    named = set(re.findall(r'icon\("(\w+)"\)', CODE)) | set(re.findall(r'icon\(\w+ \? "(\w+)" : "\w+"\)', CODE))
    assert icons == shown | named | set(re.findall(r'icon\(\w+ \? "\w+" : "(\w+)"\)', CODE))


def test_colours_can_be_read_in_both_schemes() -> None:
    light, dark = (
        dict(re.findall(r"--([\w-]+): (#\w+)", part)) for part in STYLE.split("prefers-color-scheme: dark", 1)
    )
    for scheme in (light, light | dict(list(dark.items())[: len(light)])):
        for ink, ground in (("ink", "bg"), ("soft", "bg"), ("soft", "sunk"), ("soft", "card"), ("accent", "card")):
            assert contrast(scheme[ink], scheme[ground]) >= 4.5
        for ink, ground in (("on-accent", "accent"), ("accent", "tint"), ("bad", "bad-tint"), ("ink", "bad-tint")):
            assert contrast(scheme[ink], scheme[ground]) >= 4.5
        assert contrast(scheme["edge"], scheme["card"]) >= 3  # the borders of fields


def contrast(one: str, other: str) -> float:
    """As WCAG 2 defines it, 1 to 21."""
    lights = sorted((luminance(one), luminance(other)))
    return (lights[1] + 0.05) / (lights[0] + 0.05)


def luminance(colour: str) -> float:
    """Of #rgb or #rrggbb, 0 to 1."""
    digits = colour[1:] if len(colour) == 7 else "".join(2 * digit for digit in colour[1:])
    parts = [int(digits[at : at + 2], 16) / 255 for at in (0, 2, 4)]
    linear = [part / 12.92 if part <= 0.04045 else ((part + 0.055) / 1.055) ** 2.4 for part in parts]
    return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]


def test_script_is_javascript() -> None:
    if (node := shutil.which("node")) is None:
        pytest.skip("node is not installed; it reads the script of the page")
    subprocess.run([node, "--check", "--input-type=commonjs", "-"], input=SCRIPT.encode(), check=True, timeout=60)


def test_the_server_answers_with_it(client: Client, run: Run[Any]) -> None:
    answer = run(client.send("GET", "/"))
    assert answer.status == 200
    assert answer.body == page().body
    assert "script-src 'sha256-" in answer.headers["content-security-policy"]
