"""The command line: its options and overrides made ready for Hydra, and errors of users as one line and exit code 2."""

from __future__ import annotations

import atexit
import gc
import os
import re
import shlex
import sys
import time
from argparse import ArgumentParser, Namespace, RawDescriptionHelpFormatter
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NoReturn

from fovea_detr.compose import is_users, one_line
from fovea_detr.config.overrides import HINT, refuse_repeated_sweeps, rewrite
from fovea_detr.config.suggest import suggestion
from fovea_detr.errors import ConfigError, UserError, tell

OVERRIDE = re.compile(r"[+~]*[\w./@:$][\w./@:$-]*=|~", re.DOTALL)
OF_A_SWEEP = re.compile(r"\+?(sweeps|hydra/launcher|hydra/sweeper|hydra\.launcher\..*|hydra\.sweeper\..*)")
RANK_0_SECONDS = 5.0


class Parser(ArgumentParser):
    """The options of a command other than run.py: the description as written; an error is one line, exit code 2."""

    def __init__(self, **options: Any) -> None:
        super().__init__(formatter_class=RawDescriptionHelpFormatter, **options)

    def error(self, message: str) -> NoReturn:
        tell(f"error: {message}; see `{self.prog} --help`")
        sys.exit(2)


@contextmanager
def one_line_errors(leave: bool = True, *, on_every_rank: bool = False) -> Iterator[None]:
    """A UserError ends in one line on stderr and exit code 2; any other exception keeps its traceback.

    leave=False: print the line and raise the error again, for the other points of a sweep are still to be run. An
    error in the configuration ends the sweep in either case. on_every_rank: all ranks meet the same error, and rank 0
    prints it.
    """
    try:
        yield
    except Exception as error:
        if not is_users(error):
            raise
        is_silent = on_every_rank and os.environ.get("RANK", "0") != "0"
        if is_silent:
            time.sleep(RANK_0_SECONDS)  # torchrun ends all ranks at the first exit: rank 0 prints before it
        elif not getattr(error, "told", False):
            tell(f"error: {error if isinstance(error, UserError) else one_line(error)}")
        if leave or isinstance(error, ConfigError):
            sys.exit(2)
        error.told = True  # type: ignore[attr-defined]
        raise


def make_folder(path: Path) -> None:
    """The folder that `--to` names, with those around it. Raises UserError where it cannot be made or written."""
    try:
        path.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(f"--to: the folder {path} cannot be made ({error.strerror})") from None
    if not os.access(path, os.W_OK):
        raise UserError(f"--to: nothing can be written into the folder {path}")


def run_cleanly(main: Callable[[], object]) -> None:
    """Run Hydra's main with the command line rewritten, and with one-line errors unless HYDRA_FULL_ERROR=1 is set."""
    if os.environ.get("HYDRA_FULL_ERROR") == "1":
        sys.argv[1:] = for_hydra(sys.argv[1:])
        main()
        return
    os.environ["HYDRA_FULL_ERROR"] = "1"  # Hydra then lets exceptions through instead of printing its own summary
    with one_line_errors(on_every_rank=True):
        sys.argv[1:] = for_hydra(sys.argv[1:])
        main()


def for_hydra(arguments: Sequence[str]) -> list[str]:
    """The arguments as typed -> as Hydra reads them, options in one block. Raises ConfigError."""
    chosen, options, typed = options_and_overrides(arguments)
    overrides = rewrite(typed)
    if chosen.multirun:
        refuse_repeated_sweeps(overrides)
    elif not (chosen.cfg or chosen.info or chosen.help or chosen.hydra_help or chosen.shell_completion):
        refuse_parts_of_a_sweep(typed)
    first = list(arguments[: len(options)]) == options
    return [*options, *overrides] if first else [*overrides, *options]


def options_and_overrides(arguments: Sequence[str]) -> tuple[Namespace, list[str], list[str]]:
    """Hydra's options as it reads them, as typed, and all other words. Options may stand between overrides."""
    from hydra._internal.utils import get_args_parser

    parser = get_args_parser()
    parser.error = _refuse
    rest = [word for word in arguments if not OVERRIDE.match(word)]
    chosen, unknown = parser.parse_known_args(rest)
    for word in unknown:
        if word.startswith("-"):
            _refuse(f"{word}: there is no such option; {suggestion(word.partition('=')[0])}overrides are KEY=VALUE")
    loose = {*chosen.overrides, *unknown}
    options = [word for word in rest if word not in loose]
    return chosen, options, [word for word in arguments if OVERRIDE.match(word) or word in loose]


def _refuse(message: str) -> NoReturn:
    raise ConfigError(f"{message}; {HINT}")


def refuse_parts_of_a_sweep(typed: Sequence[str]) -> None:
    """Raise ConfigError for `sweeps=mixture` or a launcher without -m, which would train a single point here."""
    if any(re.fullmatch(r"hydra\.mode=multirun", word, re.IGNORECASE) for word in typed):
        return
    for word in typed:
        key, _, value = word.partition("=")
        if OF_A_SWEEP.fullmatch(key) and value != "null":
            raise ConfigError(f"{word} belongs to a sweep; add -m: python run.py -m {shlex.join(typed)}")


@contextmanager
def importing_torch() -> Iterator[None]:
    """Importing it creates 600,000 objects that stay: searching them for garbage took a fifth of a run's start.

    Inside, nothing is searched, and what the first import has created is left out of later searches, too, up to the
    interpreter's last one, without which triton's binding reports leaks.
    """
    is_first = "torch" not in sys.modules
    gc.disable()
    try:
        yield
    finally:
        gc.enable()
    if is_first:
        gc.freeze()
        atexit.register(gc.unfreeze)
