"""`python -m dasheng_edge`: the command line, where the program `dasheng-edge` is not on the PATH."""

from __future__ import annotations

from dasheng_edge.runtime.cli.app import main

if __name__ == "__main__":
    main()
