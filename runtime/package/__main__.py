"""Where the process begins, as `dasheng-edge` and as `python -m dasheng_edge`, and how signals end it.

It imports next to nothing: until there is a handler, Ctrl-C prints a traceback.
"""

from __future__ import annotations

import os
import signal


def main() -> None:
    """Entry point of the program."""
    numbers = [getattr(signal, name) for name in ("SIGINT", "SIGTERM", "SIGHUP") if hasattr(signal, name)]  # Windows
    for number in numbers:
        if signal.getsignal(number) is not signal.SIG_IGN:  # as nohup wants it
            signal.signal(number, _end)
    from dasheng_edge.runtime.cli.app import main as run

    try:
        run()
    except SystemExit as end:
        if isinstance(end.code, int) and end.code - 128 in numbers:
            os._exit(end.code)  # engines may still be at work, and abort when Python ends their threads
        raise


def _end(number: int, _: object) -> None:
    """Ends the process at once: before and behind a command nothing is half-done, and within others handle signals."""
    try:
        if number == signal.SIGINT:
            os.write(2, b"interrupted\n")
    finally:  # stderr may be closed
        os._exit(128 + number)


if __name__ == "__main__":
    main()
