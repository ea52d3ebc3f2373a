"""Published captioning scores of greedy answers through aac-metrics, where it is installed.

FENSE, CIDEr-D and SPIDEr-FL as the audio captioning community computes them: CIDEr-D and SPIDEr-FL on texts that
Stanford's PTB tokeniser has split (Java), FENSE on the texts as they are, with its penalty for broken sentences.
MiDashengLM's published FENSE is without that penalty, and so a little higher. The library downloads models and
programs once (`aac-metrics-download`), and brings torchaudio, which has to match torch exactly and makes transformers
fail where it does not: it belongs into an environment of its own, which needs no encoder nor decoder, only the report.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from importlib import import_module
from typing import Any

from dasheng_edge.runtime.errors import ClipsError, MissingExtraError
from dasheng_edge.runtime.machine.installation import install_line

from .bootstrap import task_score
from .record import TaskScore

# The library's names -> those in a report, where "cider_d" is that of `text_scores`, with its simple tokeniser.
AAC_METRICS = {"fense": "fense", "cider_d": "cider_d_ptb", "spider_fl": "spider_fl"}
_NEEDS_PTB = frozenset({"cider_d", "spider_fl"})
_EMPTY = "."  # an answer without words: PTB drops it, while an empty line at the end would put its lines out of step
_OWN_ENVIRONMENT = (
    "in an environment of its own, since what it brings (torchaudio) has to match torch exactly and breaks "
    "transformers otherwise"
)
_PREPARE = "run aac-metrics-download, once; CIDEr-D and SPIDEr-FL need Java, of versions 8 to 13, too"


def extra_scores(
    answers: Sequence[str],
    references: Sequence[Sequence[str]],
    metrics: Iterable[str] = tuple(AAC_METRICS),
    reference_answers: Sequence[str] | None = None,
) -> dict[str, TaskScore]:
    """Scores of one model's answers, one for each clip, against the clips' references.

    `reference_answers` are the reference model's, which changes are taken against, paired by clip. Intervals draw the
    scores of clips; document frequencies of CIDEr-D stay those of all clips.

    Raises:
        MissingExtraError: aac-metrics, or what it needs, is not there or does not work.
        ClipsError: there are fewer than two clips, or one has no reference.
    """
    assert len(answers) == len(references)
    assert reference_answers is None or len(reference_answers) == len(answers)
    check_references(references)
    library = aac_library()
    scores = {}
    for metric in metrics:
        got = _by_clip(library, metric, answers, references)
        want = None if reference_answers is None else _by_clip(library, metric, reference_answers, references)
        scores[AAC_METRICS[metric]] = task_score(got, want, "higher")
    return scores


def check_references(references: Sequence[Sequence[str]]) -> None:
    """Whether clips with these references can be scored; for asking before hours of work.

    Raises:
        ClipsError: there are fewer than two clips, or one has no reference.
    """
    if len(references) < 2 or not all(references):
        raise ClipsError(
            f"captioning scores need at least two clips, each with a reference; got {len(references)}, "
            f"{sum(not texts for texts in references)} without; leave those out, or add references to the manifest"
        )


def aac_library() -> Any:
    """The module; for asking whether it is there before hours of work.

    Raises:
        MissingExtraError: it is not, or does not fit what is installed.
    """
    try:
        return import_module("aac_metrics")
    except (ImportError, OSError, RuntimeError) as error:  # the last two: of a torchaudio that does not fit torch
        raise MissingExtraError(
            f"captioning scores need aac-metrics, which cannot be imported ({error}); {_OWN_ENVIRONMENT}, run "
            f"{install_line('metrics')}"
        ) from error


def _by_clip(
    library: Any, metric: str, answers: Sequence[str], references: Sequence[Sequence[str]]
) -> list[tuple[float, float]]:
    """The score of each clip, and the 1 that it counts for."""
    try:
        _, by_clip = library.evaluate(
            [_line(text) for text in answers],
            [[_line(text) for text in texts] for texts in references],
            preprocess=metric in _NEEDS_PTB,
            metrics=[metric],
        )
    except (OSError, RuntimeError, ValueError) as error:  # no Java, no network, nothing downloaded
        raise MissingExtraError(f"aac-metrics cannot compute {metric}: {error}; {_PREPARE}") from error
    return [(value, 1.0) for value in by_clip[metric].tolist()]


def _line(text: str) -> str:
    """On one line, since the tokeniser takes each line for a text."""
    return " ".join(text.split()) or _EMPTY
