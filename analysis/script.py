"""What the scripts share: the option --runs, and errors of users as one line."""

from __future__ import annotations

import functools
import sys
from collections.abc import Callable, Sequence
from pathlib import Path

from fovea_detr.cli import Parser
from fovea_detr.errors import UserError


def add_runs(whole: Parser) -> None:
    whole.add_argument("--runs", type=Path, default=Path("runs"), help="the folder of the studies (default: runs)")


def script(main: Callable[[Sequence[str] | None], None]) -> Callable[..., int]:
    """`main` with an exit code: 1 after a user's error, which is one line, 130 after Ctrl-C."""

    @functools.wraps(main)
    def run(arguments: Sequence[str] | None = None) -> int:
        try:
            main(arguments)
        except (UserError, OSError) as error:
            print(f"error: {error}", file=sys.stderr)
            return 1
        except KeyboardInterrupt:
            return 130
        return 0

    return run
