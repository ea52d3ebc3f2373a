"""Tools of ONNX Runtime and optimum, which print and log as programs do."""

from __future__ import annotations

import logging
import warnings
from collections.abc import Generator
from contextlib import contextmanager, redirect_stdout
from io import StringIO


@contextmanager
def quiet() -> Generator[None]:
    """Silences what they print and log, which is advice to those who call them; their errors are exceptions."""
    before = logging.root.manager.disable
    logging.disable(logging.WARNING)
    try:
        with redirect_stdout(StringIO()), warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.disable(before)
