"""Which audio track of a file is read, and how it is called."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from typing import Any

import av
import av.container
import av.logging
import av.stream

from dasheng_edge.runtime.errors import AudioDecodeError, AudioError

# ISO 639: the code of two letters, and those of three that the same language has; files state the latter.
_CODES = """
    aa=aar ab=abk ae=ave af=afr ak=aka am=amh an=arg ar=ara as=asm av=ava ay=aym az=aze ba=bak be=bel bg=bul bi=bis
    bm=bam bn=ben bo=bod=tib br=bre bs=bos ca=cat ce=che ch=cha co=cos cr=cre cs=ces=cze cu=chu cv=chv cy=cym=wel
    da=dan de=deu=ger dv=div dz=dzo ee=ewe el=ell=gre en=eng eo=epo es=spa et=est eu=eus=baq fa=fas=per ff=ful
    fi=fin fj=fij fo=fao fr=fra=fre fy=fry ga=gle gd=gla gl=glg gn=grn gu=guj gv=glv ha=hau he=heb hi=hin ho=hmo
    hr=hrv ht=hat hu=hun hy=hye=arm hz=her ia=ina id=ind ie=ile ig=ibo ii=iii ik=ipk io=ido is=isl=ice it=ita iu=iku
    ja=jpn jv=jav ka=kat=geo kg=kon ki=kik kj=kua kk=kaz kl=kal km=khm kn=kan ko=kor kr=kau ks=kas ku=kur kv=kom
    kw=cor ky=kir la=lat lb=ltz lg=lug li=lim ln=lin lo=lao lt=lit lu=lub lv=lav mg=mlg mh=mah mi=mri=mao mk=mkd=mac
    ml=mal mn=mon mr=mar ms=msa=may mt=mlt my=mya=bur na=nau nb=nob nd=nde ne=nep ng=ndo nl=nld=dut nn=nno no=nor
    nr=nbl nv=nav ny=nya oc=oci oj=oji om=orm or=ori os=oss pa=pan pi=pli pl=pol ps=pus pt=por qu=que rm=roh rn=run
    ro=ron=rum ru=rus rw=kin sa=san sc=srd sd=snd se=sme sg=sag sh=hbs si=sin sk=slk=slo sl=slv sm=smo sn=sna so=som
    sq=sqi=alb sr=srp ss=ssw st=sot su=sun sv=swe sw=swa ta=tam te=tel tg=tgk th=tha ti=tir tk=tuk tl=tgl tn=tsn
    to=ton tr=tur ts=tso tt=tat tw=twi ty=tah ug=uig uk=ukr ur=urd uz=uzb ve=ven vi=vie vo=vol wa=wln wo=wol xh=xho
    yi=yid yo=yor za=zha zh=zho=chi zu=zul
"""
_SAME = {code: group.split("=")[0] for group in _CODES.split() for code in group.split("=")}


def choose_track(
    container: av.container.InputContainer, name: str, wanted: int | str | None
) -> tuple[av.AudioStream, int, str]:
    """The track that was asked for, by its number from 1 or its language, or else the one that players take.

    With its number, and what to say where there are several to choose from.

    Raises:
        AudioDecodeError: there is no track, or FFmpeg has no decoder for it.
        AudioError: there is no such track.
    """
    tracks = container.streams.audio
    if not tracks:
        raise AudioDecodeError(f"{name} has no audio track (it is {container.format.name}); expected one")
    if wanted is None:
        usable = [track for track in tracks if _decoder(track)] or list(tracks)
        marked = [track for track in usable if track.disposition & av.stream.Disposition.default]
        taken: av.AudioStream | None = (marked or usable)[0]
    elif isinstance(wanted, int) and not isinstance(wanted, bool):
        taken = tracks[wanted - 1] if 0 < wanted <= len(tracks) else None
    else:
        taken = _of_language(tracks, str(wanted).lower())
    listed = "; ".join(_told(place, track) for place, track in enumerate(tracks, 1))
    if taken is None:
        raise AudioError(f"{name} has no audio track {wanted!r}; it has {listed}")
    if _decoder(taken) is None:
        raise AudioDecodeError(f"{name} is of a codec that FFmpeg has no decoder for: {_codec(container, taken)}")
    number = 1 + list(tracks).index(taken)
    several = wanted is None and len(tracks) > 1
    note = f"it has {len(tracks)} audio tracks ({listed}); track {number} is taken, see --track" if several else ""
    return taken, number, note


def _of_language(tracks: Sequence[av.AudioStream], asked: str) -> av.AudioStream | None:
    """The first of the language as it is asked for, or by another of its codes, or that begins so."""
    stated = [(track, track.language.lower()) for track in tracks if track.language]
    likes: tuple[Callable[[str], bool], ...] = (
        lambda language: language == asked,
        lambda language: _code(language) == _code(asked),
        lambda language: asked != "" and language.startswith(asked),
    )
    return next((track for like in likes for track, language in stated if like(language)), None)


def _code(language: str) -> str:
    """Of two letters where there is one: "de" of "ger", "deu" and "de-AT"."""
    main = re.split("[-_]", language)[0]
    return _SAME.get(main, main)


def _told(place: int, track: av.AudioStream) -> str:
    about = (track.language, track.metadata.get("title") or track.metadata.get("handler_name"))
    decoder = _decoder(track)
    return f"{place}: " + ", ".join(filter(None, (*about, decoder.name if decoder else "no decoder")))


def _decoder(track: av.AudioStream) -> Any:
    """None where FFmpeg has none, which PyAV's types do not say."""
    return track.codec_context


def _codec(container: av.container.InputContainer, track: av.AudioStream) -> str:
    """FFmpeg's words about a track; PyAV has no others for one without a decoder."""
    level = av.logging.get_level()
    try:
        av.logging.set_level(av.logging.INFO)
        told = re.search(rf"Stream #0:{track.index}\b.*?Audio: ([^\n]*)", container.dumps_format())  # type: ignore[attr-defined]
    finally:
        av.logging.set_level(level)
    return told[1] if told else "it is not known to it"
