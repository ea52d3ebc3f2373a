"""Sentences in labels: what is one sound is one label, in the form for it; what is not understood stays whole."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from dasheng_edge.runtime.subtitles.labels import labels
from dasheng_edge.runtime.subtitles.verbs import PASTS, VERBS

SENTENCES = {
    "A dog barks while an engine runs in the background.": "dog barks|engine running",
    "a piano plays, followed by a dog barking, followed by an alarm beeping": "piano playing>dog barks>alarm beeps",
    "a piano plays, next a dog barks, after that an alarm goes off": "piano playing>dog barks>alarm going off",
    "it begins with a piano playing, next a dog is barking, then an alarm beeps": "piano playing>dog barks>alarm beeps",
    "at the same time an alarm beeps, rain pours and wind howls": "alarm beeps|rain pouring|wind howling",
    "the sound of an alarm going off and wind blowing together": "alarm going off|wind blowing",
    "in this clip a clock ticks with a violin playing": "clock ticking|violin playing",
    "you can hear a machine humming": "machine humming",
    "a man talking in German can be heard": "man talking in German",
    "rain; dog bark; piano": "rain|dog bark|piano",
    "wind, rain and thunder": "wind|rain|thunder",
    "A man and a woman speak.": "man and a woman speaking",
    "An engine starts and then idles": "engine starts>engine idling",
    "Footsteps approach, a door opens and closes, and someone coughs.": (
        "footsteps approaching|door opens|door closes|someone coughs"
    ),
    "a crowd of people applaud and cheer": "crowd of people applauding|crowd of people cheering",
    "The audio clip features a man speaking with a calm tone, accompanied by piano music. In the background, birds can "
    "be heard chirping.": "man speaking with a calm tone|piano music|birds chirping",
    "A dog barked.": "dog barks",
    "Dogs were barking": "dogs bark",
    "The door was slammed": "door slams",
    "a guitar is being strummed": "guitar strumming",
    "loud barking dog": "loud barking dog",
    "English speech with an echo": "English speech with an echo",
    "two drums play": "two drums playing",
    "Ein Hund bellt, während ein Motor läuft.": "Ein Hund bellt, während ein Motor läuft",
    "Un chien aboie dans le jardin": "Un chien aboie dans le jardin",
    "一只狗在叫。发动机在运转。": "一只狗在叫|发动机在运转",
    "כלב נובח": "כלב נובח",
    "...": "",
}


@pytest.mark.parametrize(("sentence", "expected"), SENTENCES.items())
def test_sentences_become_labels(sentence: str, expected: str) -> None:
    found = labels(sentence)
    said = "".join((">" if label.later else "|") + label.single for label in found)
    assert said[1:] == expected


@pytest.mark.parametrize(
    ("sentence", "lasting", "continues"),
    [
        ("a dog barks", "dog barking", "barking continues"),
        ("door slams shut", "door slamming shut", "slamming continues"),
        ("a piano plays a melody", "piano playing a melody", "piano continues"),
        ("drums play", "drums playing", "drums continue"),
        ("rain", "", ""),
        ("the rain", "rain", "rain continues"),
    ],
)
def test_what_lasts_is_a_participle_and_continues(sentence: str, lasting: str, continues: str) -> None:
    (label,) = labels(sentence)
    assert (label.lasting, label.continues) == (lasting or sentence, continues)


def test_wordings_of_one_sound_are_one_label() -> None:
    assert len(labels("A dog barks. A dog is barking loudly. The dog barked in the distance. a dog barking")) == 1
    assert len(labels("a man speaks German. a woman speaks German")) == 2


@given(st.text(max_size=80))
def test_any_text_has_labels_with_something_in_them(text: str) -> None:
    assert all(label.key and label.single and label.lasting for label in labels(text))


def test_no_label_speaks_of_the_past() -> None:
    for base, verb in VERBS.items():
        forms = [base, verb.third, verb.participle, *(f"was {past}" for past in verb.pasts), f"is {verb.participle}"]
        said = {label.single for form in forms for label in labels(f"the bees {form}")}
        assert said == {f"bees {verb.participle if verb.lasting else base}"}
        assert not {word for text in said for word in text.split()[1:] if word in PASTS} - {base}


@pytest.mark.parametrize(
    "forms",
    [
        "hum hums humming hummed", "cry cries crying cried", "quack quacks quacking quacked", "go goes going went",
        "buzz buzzes buzzing buzzed", "creak creaks creaking creaked", "idle idles idling idled", "hit hits hitting",
        "ring rings ringing rang", "play plays playing played", "open opens opening opened", "rev revs revving revved",
        "mow mows mowing mowed", "snore snores snoring snored", "whir whirs whirring whirred",
        "tune tunes tuning tuned",
    ],
)  # fmt: skip
def test_forms_of_verbs(forms: str) -> None:
    base, *others = forms.split()
    verb = VERBS[base]
    assert others == [verb.third, verb.participle, *verb.pasts[:1]]
