"""What stands in a folder in place of a large file when only the text of a repository was cloned."""

from __future__ import annotations

from pathlib import Path

from dasheng_edge.runtime.errors import CheckpointFileError

# How a pointer begins -> whose it is. Git LFS was called hawser once; Xet is what the Hugging Face hub stores files in.
_POINTERS = {
    b"version https://git-lfs.github.com/": "Git LFS",
    b"version https://hawser.github.com/": "Git LFS",
    b"# xet version": "Xet",
    b"/annex/objects/": "git-annex",
}
POINTER_BYTES = 64  # of a file's beginning tell whether it is one


def refuse_pointer(path: Path, beginning: bytes) -> None:
    """Refuse a file whose first bytes say that its content is elsewhere.

    Raises:
        CheckpointFileError: it is a pointer; how to get the content is said.
    """
    content = beginning.removeprefix(b"\xef\xbb\xbf").lstrip()
    if kind := next((kind for start, kind in _POINTERS.items() if content.startswith(start)), None):
        fetch = {"Git LFS": "git lfs pull", "git-annex": "git annex get ."}.get(
            kind, "git xet checkout or git lfs pull"
        )
        raise CheckpointFileError(
            f"{path} is a pointer of {kind}, not the file itself, which a clone leaves where it does not fetch large "
            f"files; run `{fetch}` there, or download the model with `dasheng-edge pull`"
        )
