"""The command line: errors of users as one line and exit code 2."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from fovea_detr.compose import is_users, one_line, refuse_repeated_sweeps, rewrite
from fovea_detr.errors import ConfigError, UserError, tell


@contextmanager
def one_line_errors(leave: bool = True) -> Iterator[None]:
    """A UserError ends in one line on stderr and exit code 2; any other exception keeps its traceback.

    leave=False: print the line and raise the error again, for the other points of a sweep are still to be run. An
    error in the configuration ends the sweep in either case.
    """
    try:
        yield
    except Exception as error:
        if not is_users(error):
            raise
        if not getattr(error, "told", False):
            tell(f"error: {error if isinstance(error, UserError) else one_line(error)}")
        if leave or isinstance(error, ConfigError):
            sys.exit(2)
        error.told = True  # type: ignore[attr-defined]
        raise


def run_cleanly(main: Callable[[], object]) -> None:
    """Run Hydra's main with the command line rewritten, and with one-line errors unless HYDRA_FULL_ERROR=1 is set."""
    if os.environ.get("HYDRA_FULL_ERROR") == "1":
        sys.argv[1:] = rewrite(sys.argv[1:])
        main()
        return
    os.environ["HYDRA_FULL_ERROR"] = "1"  # Hydra then lets exceptions through instead of printing its own summary
    with one_line_errors():
        refuse_repeated_sweeps(sys.argv[1:])
        sys.argv[1:] = rewrite(sys.argv[1:])
        main()
