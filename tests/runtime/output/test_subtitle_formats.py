"""Files of subtitles: read by programs of others, what was written comes back."""

from __future__ import annotations

import xml.etree.ElementTree as ET
from io import StringIO

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from dasheng_edge.runtime.errors import SubtitleError
from dasheng_edge.runtime.output.subtitle_formats import srt, ttml, vtt
from dasheng_edge.runtime.subtitles.cue import Cue
from dasheng_edge.runtime.subtitles.wrapping import shown

CUES = [
    Cue(0.0, 0.83, ("[dog barks]", "[engine running]")),
    Cue(1.5, 3.25, ("-->", "<b>&amp;</b> {\\an8}")),
    Cue(3600.001, 3601.0, ("[כלב נובח]",)),
    Cue(360_000.5, 360_002.0, ("犬が吠えている", "👩‍👩‍👧‍👦")),
]
TEXTS = st.text(max_size=30)
ANY = st.lists(st.builds(Cue, st.floats(0, 1e7), st.floats(0, 1e7), st.tuples(TEXTS, TEXTS)), max_size=4)
NAMES = {"tt": "http://www.w3.org/ns/ttml"}


def lines_of(cues: list[Cue]) -> list[str]:
    """The text of those cues that have one."""
    return [text for cue in cues if (text := "\n".join(filter(None, map(shown, cue.lines))))]


def plain(text: str) -> str:
    """As SubRip writes what would be an order."""
    return text.translate(str.maketrans("<>{}\\", "‹›()/"))


def test_subrip() -> None:
    assert srt(CUES[:2]) == (
        "1\n00:00:00,000 --> 00:00:00,830\n[dog barks]\n[engine running]\n\n"
        "2\n00:00:01,500 --> 00:00:03,250\n--›\n‹b›&amp;‹/b› (/an8)\n"
    )


def test_webvtt() -> None:
    assert vtt(CUES[1:2]) == "WEBVTT\n\n00:00:01.500 --> 00:00:03.250\n--&gt;\n&lt;b&gt;&amp;amp;&lt;/b&gt; {\\an8}\n"
    assert "100:00:00.500 --> 100:00:02.000" in vtt(CUES)


def test_ttml_has_language_direction_and_times() -> None:
    root = ET.fromstring(ttml(CUES, "Hebrew"))
    found = root.findall(".//tt:p", NAMES)
    assert root.get("{http://www.w3.org/XML/1998/namespace}lang") == "he"
    assert [one.get("style") for one in found] == ["ltr", "ltr", "rtl", "ltr"]
    assert [(one.get("begin"), one.get("end")) for one in found][2] == ("01:00:00.001", "01:00:01.000")


def test_ttml_refers_to_what_is_there_and_is_a_document_without_cues_too() -> None:
    root = ET.fromstring(ttml(CUES))
    ids = [one.get("{http://www.w3.org/XML/1998/namespace}id") for one in root.iter()]
    names = [name for name in ids if name is not None]
    assert len(set(names)) == len(names)
    assert {one.get(key) for one in root.iter() for key in ("region", "style")} - {None} <= set(names)
    assert [one.tag.rpartition("}")[2] for one in ET.fromstring(ttml([]))] == ["head"]  # a body must not be empty


@pytest.mark.parametrize("language", ["", "English please", 'en"', "e", "klingon", "en-"])
def test_what_is_no_language_is_refused(language: str) -> None:
    with pytest.raises(SubtitleError, match="expected a tag"):
        ttml([], language)


@pytest.mark.parametrize("write", [srt, vtt, ttml])
def test_times_that_are_none_are_refused(write: type[str]) -> None:
    with pytest.raises(SubtitleError, match="from 0 on"):
        write([Cue(0.0, float("inf"), ("a",))])


@settings(max_examples=60, deadline=None)
@given(ANY)
def test_ttml_of_anything_is_xml_that_says_it(cues: list[Cue]) -> None:
    text = ttml(cues)
    found = ET.fromstring(text.encode()).findall(".//tt:span", NAMES)
    said = ["\n".join([one.text or "", *(br.tail or "" for br in one)]) for one in found]
    assert [text.removesuffix("\n") for text in said] == lines_of(cues)


@settings(max_examples=60, deadline=None)
@given(ANY)
def test_blocks_of_subrip_and_webvtt_are_cues(cues: list[Cue]) -> None:
    for text in (srt(cues), vtt(cues).removeprefix("WEBVTT\n").removeprefix("\n")):
        found = text.split("\n\n") if text else []
        assert [block.count("-->") for block in found] == [1] * len(lines_of(cues))
        assert text.encode().decode() == text


def test_srt_library_reads_subrip() -> None:
    library = pytest.importorskip("srt")
    found = list(library.parse(srt(CUES)))
    assert [one.content for one in found] == [plain(text) for text in lines_of(CUES)]
    assert [(one.start.total_seconds(), one.end.total_seconds()) for one in found] == [
        (c.start_s, c.end_s) for c in CUES
    ]


@pytest.mark.parametrize(("write", "kind"), [(srt, "srt"), (vtt, "vtt"), (ttml, "ttml")])
def test_pysubs2_reads_all(write: type[str], kind: str) -> None:
    library = pytest.importorskip("pysubs2")
    cues = CUES[:3]  # it knows no hundred hours
    found = library.SSAFile.from_string(write(cues), format_=kind)
    texts = [one.plaintext for one in found]
    assert len(texts) == len(cues)
    assert [(one.start, one.end) for one in found] == [(round(1000 * c.start_s), round(1000 * c.end_s)) for c in cues]


def test_webvtt_py_reads_webvtt() -> None:
    library = pytest.importorskip("webvtt")
    found = library.from_buffer(StringIO(vtt(CUES)))
    assert [one.start_in_seconds for one in found] == [int(cue.start_s) for cue in CUES]


@pytest.mark.filterwarnings("ignore")  # it calls what its own libraries advise against
@pytest.mark.parametrize("kind", ["SRTReader", "WebVTTReader", "DFXPReader"])
def test_pycaption_reads_all(kind: str) -> None:
    library = pytest.importorskip("pycaption")
    text = {"SRTReader": srt, "WebVTTReader": vtt, "DFXPReader": ttml}[kind](CUES)
    found = getattr(library, kind)().read(text)
    (language,) = found.get_languages()
    captions = found.get_captions(language)
    assert [(one.start, one.end) for one in captions] == [(round(1e6 * c.start_s), round(1e6 * c.end_s)) for c in CUES]
