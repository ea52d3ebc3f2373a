"""Languages by all their codes and names, against ISO 639 as Debian has it where that is installed."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from dasheng_edge.runtime.errors import LanguageError
from dasheng_edge.runtime.languages.language import Language, _languages, find_language, language_of

ISO = Path("/usr/share/iso-codes/json")
ALL = {language.tag: language for language in _languages().values()}
LANGUAGES = st.sampled_from(sorted(ALL.values(), key=lambda one: one.tag))


def iso(part: str) -> list[dict[str, Any]]:
    path = ISO / f"iso_{part}.json"
    if not path.is_file():
        pytest.skip(f"needs iso-codes ({path})")
    rows: list[dict[str, Any]] = json.loads(path.read_bytes())[part]
    return rows


def test_all_of_iso_639_2_is_known_by_each_code() -> None:
    for row in iso("639-2"):
        three = row["alpha_3"][:3]  # of qaa-qtz
        expected = Language(row.get("alpha_2", three), three, row.get("bibliographic", three))
        for code in filter(None, (row.get("alpha_2"), three, row.get("bibliographic"))):
            assert language_of(code) == expected


def test_codes_are_those_of_iso_639_3() -> None:
    groups = {row["alpha_3"] for row in iso("639-2")} - {row["alpha_3"] for row in iso("639-3")}
    rows = {row["alpha_3"]: row for row in iso("639-3")}
    single = [language for language in ALL.values() if language.terminology not in groups]
    for language in single:
        assert language.code == rows[language.terminology].get("alpha_2", language.terminology)


def test_every_name_is_one_that_iso_has_or_near_it() -> None:
    names: dict[str, str] = {row["alpha_3"]: "" for part in ("639-2", "639-3") for row in iso(part)}
    for row in [*iso("639-2"), *iso("639-3")]:
        names[row["alpha_3"]] += repr(row).lower()
    known = {name for name in _languages() if len(name) > 3}
    strange = {name for name in known if name not in names[_languages()[name].terminology]}
    assert strange == {
        "cantonese", "farsi", "hokkien", "kirundi", "luganda", "mandarin", "myanmar", "māori", "odia", "tongan",
    }  # fmt: skip


@pytest.mark.parametrize(
    ("text", "tag", "three"),
    [
        ("en", "en", "eng"), ("ENG", "en", "eng"), ("english", "en", "eng"), (" English ", "en", "eng"),
        ("ger", "de", "deu"), ("deu", "de", "deu"), ("German", "de", "deu"), ("de_AT", "de-AT", "deu"),
        ("pt-br", "pt-BR", "por"), ("PT_BR", "pt-BR", "por"), ("zh-hant", "zh-Hant", "zho"),
        ("chi-HANS-cn", "zh-Hans-CN", "zho"), ("es-419", "es-419", "spa"), ("de-1996", "de-1996", "deu"),
        ("zh-yue-hk", "yue-HK", "yue"), ("cmn", "zh", "zho"), ("Cantonese", "yue", "yue"), ("iw", "he", "heb"),
        ("norwegian_bokmål", "nb", "nob"), ("Serbo-Croatian", "sh", "hbs"), ("qab", "qab", "qab"),
        ("und", "und", "und"), ("sr-Latn-RS-u-co-Standard-x-Mine", "sr-Latn-RS-u-co-standard-x-mine", "srp"),
        ("hr ", "hr", "hrv"),
    ],
)  # fmt: skip
def test_a_language_however_it_is_written(text: str, tag: str, three: str) -> None:
    found = language_of(text)
    assert (found.tag, found.terminology) == (tag, three)
    assert language_of(tag) == found
    assert found.code == language_of(three).code


@pytest.mark.parametrize(
    ("text", "near"),
    [
        ("", ""), ("klingon", ""), ("Englsh", "English"), ("Portugese", "Portuguese"), ("enn", "en"), ("xx", ""),
        ("en-", "en"), ("en-USA", "en"), ("pt-Brazilian-Portuguese", "pt"), ("English please", "en"), ("e", ""),
        ("zh-Hantt-", "zh"), ("bokmal", "Bokmål"), ("zzz", ""), ("\uff25\uff2e", ""), ("en\n-US", "en"),
        ("\u017fv", ""), ("x-mine", ""), ("\x1b[31m", ""), ("en-US-US", "en"),
    ],
)  # fmt: skip
def test_what_is_none_is_refused_with_the_nearest(text: str, near: str) -> None:
    assert find_language(text) is None
    with pytest.raises(LanguageError, match=r"expected a tag such as en, deu or pt-BR") as raised:
        language_of(text)
    assert repr(text) in str(raised.value)
    assert not near or re.search(f"did you mean .*{near}", str(raised.value))


@given(LANGUAGES, st.sampled_from(["", "-Hant", "-BR", "-Latn-419", "-1996", "-x-mine"]), st.booleans(), st.booleans())
def test_each_code_of_a_language_means_it_in_any_case(language: Language, rest: str, upper: bool, posix: bool) -> None:
    for code in (language.code, language.terminology, language.bibliographic):
        text = f"{code}{rest}".replace("-", "_" if posix else "-")
        found = language_of(text.upper() if upper else text)
        assert found == Language(language.tag + rest, language.terminology, language.bibliographic)


@given(st.text(max_size=12) | st.from_regex(r"[A-Za-z]{2,3}([-_][A-Za-z0-9]{1,8}){0,3}", fullmatch=True))
@example("\u212ao")
def test_any_text_is_a_language_or_refused(text: str) -> None:
    found = find_language(text)
    if found is None:
        with pytest.raises(LanguageError):
            language_of(text)
    else:
        assert re.fullmatch(r"[a-z]{2,3}(-[A-Za-z0-9]+)*", found.tag)
        assert find_language(found.tag) == found
        assert all(re.fullmatch("[a-z]{3}", three) for three in (found.terminology, found.bibliographic))
