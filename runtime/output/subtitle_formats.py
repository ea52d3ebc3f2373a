"""Cues as files: SubRip, WebVTT and TTML (EBU-TT-D, which is IMSC text). What would be markup in them is escaped."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from xml.sax.saxutils import escape

from dasheng_edge.runtime.errors import SubtitleError
from dasheng_edge.runtime.languages.language import language_of
from dasheng_edge.runtime.subtitles.cue import Cue
from dasheng_edge.runtime.subtitles.wrapping import is_right_to_left, shown

# SubRip has no escapes: players take <b> for bold, and {\an8} or {y:i} for orders. What looks like it stands for it.
_LOOKALIKES = str.maketrans({"<": "‹", ">": "›", "{": "(", "}": ")", "\\": "/"})


def srt(cues: Sequence[Cue], first: int = 1) -> str:
    """SubRip, numbered from `first` on.

    It knows no escapes: what players would take for orders is written with characters that look alike.
    """
    blocks = [
        f"{number}\n{_clock(start, ',')} --> {_clock(end, ',')}\n" + "\n".join(lines).translate(_LOOKALIKES) + "\n"
        for number, (start, end, lines) in enumerate(_written(cues), first)
    ]
    return "\n".join(blocks)


def vtt(cues: Sequence[Cue]) -> str:
    """WebVTT, for browsers."""
    blocks = [
        f"{_clock(start, '.')} --> {_clock(end, '.')}\n" + escape("\n".join(lines)) + "\n"
        for start, end, lines in _written(cues)
    ]
    return "\n".join(["WEBVTT\n", *blocks])


def ttml(cues: Sequence[Cue], language: str = "en") -> str:
    """TTML in the profile EBU-TT-D, which is IMSC text too, for broadcast; `language` is one as `language_of` takes it.

    Raises:
        LanguageError: `language` is none that is known.
    """
    tag = language_of(language).tag
    paragraphs = [
        f'      <p xml:id="c{number}" region="bottom" style="{"rtl" if is_right_to_left(lines[0]) else "ltr"}" '
        f'begin="{_clock(start, ".")}" end="{_clock(end, ".")}">'
        f'<span style="text">{"<br/>".join(map(escape, lines))}</span></p>'
        for number, (start, end, lines) in enumerate(_written(cues), 1)
    ]
    body = "\n".join(["  <body>", "    <div>", *paragraphs, "    </div>", "  </body>", ""])  # which is never empty
    return _TTML.format(language=tag, body=body if paragraphs else "")


# The BBC's and the EBU's defaults: white on a box of black, at the bottom, inside 80 % of the picture.
_TTML = """\
<?xml version="1.0" encoding="UTF-8"?>
<tt xmlns="http://www.w3.org/ns/ttml" xmlns:ttp="http://www.w3.org/ns/ttml#parameter" \
xmlns:tts="http://www.w3.org/ns/ttml#styling" xmlns:ebuttm="urn:ebu:tt:metadata" \
ttp:timeBase="media" ttp:cellResolution="32 15" xml:lang="{language}">
  <head>
    <metadata>
      <ebuttm:documentMetadata>
        <ebuttm:conformsToStandard>urn:ebu:tt:distribution:2018-04</ebuttm:conformsToStandard>
        <ebuttm:conformsToStandard>http://www.w3.org/ns/ttml/profile/imsc1/text</ebuttm:conformsToStandard>
      </ebuttm:documentMetadata>
    </metadata>
    <styling>
      <style xml:id="ltr" tts:fontFamily="sansSerif" tts:fontSize="100%" tts:textAlign="center"/>
      <style xml:id="rtl" tts:fontFamily="sansSerif" tts:fontSize="100%" tts:textAlign="center" tts:direction="rtl"/>
      <style xml:id="text" tts:color="#ffffff" tts:backgroundColor="#000000"/>
    </styling>
    <layout>
      <region xml:id="bottom" tts:origin="10% 70%" tts:extent="80% 20%" tts:displayAlign="after"/>
    </layout>
  </head>
{body}</tt>
"""


def _written(cues: Sequence[Cue]) -> Iterator[tuple[int, int, tuple[str, ...]]]:
    """Start and end in milliseconds, and lines that hold nothing that ends a cue; cues without a line are left out."""
    for cue in cues:
        if not (math.isfinite(cue.start_s) and math.isfinite(cue.end_s) and cue.start_s >= 0):
            raise SubtitleError(f"a cue is shown from {cue.start_s} s to {cue.end_s} s; expected times from 0 on")
        if lines := tuple(filter(None, map(shown, cue.lines))):
            yield round(1000 * cue.start_s), round(1000 * cue.end_s), lines


def _clock(ms: int, point: str) -> str:
    seconds, rest = divmod(ms, 1000)
    minutes, seconds = divmod(seconds, 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours:02d}:{minutes:02d}:{seconds:02d}{point}{rest:03d}"
