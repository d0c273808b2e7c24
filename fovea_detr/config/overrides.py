"""Overrides as typed -> the same in Hydra's grammar. What the grammar cannot read is refused in one line."""

from __future__ import annotations

import json
import os
import re
import shlex
from collections.abc import Sequence
from typing import Any

from fovea_detr.config.groups import group_values
from fovea_detr.errors import ConfigError

PATH_KEYS = ("weights", "runs", "data.root", "data.cache", "model.backbone_weights")
PATH_KEYS += tuple(f"data.{split}.{part}" for split in ("train", "val") for part in ("annotations", "images"))
NAMES = ("imagenet", "none", "null")  # values of a path's key that are no path
PLAIN_PATH = re.compile(r"[A-Za-z_./][\w./@+-]*", re.ASCII)  # Hydra reads it as it stands
FUNCTION = re.compile(r"\w+\(.*\)")
HINT = "see `python run.py --help`"


def rewrite(typed: Sequence[str]) -> list[str]:
    """Quote paths and the choices of groups that are numbers. Raises ConfigError for what is not in Hydra's grammar."""
    refuse_loose_words(typed)
    rewritten = [quote_choices(quote_paths(with_open_key(override))) for override in typed]
    for override in rewritten:
        parsed(override)
    return rewritten


def with_open_key(override: str) -> str:
    """`cluster.extra.nice=100` -> `++cluster.extra.nice=100`: any option of sbatch may stand there."""
    return f"++{override}" if override.startswith("cluster.extra.") else override


def parsed(override: str) -> Any:
    """Hydra's Override. Raises ConfigError with the reason in one line."""
    from hydra.core.override_parser.overrides_parser import OverridesParser
    from hydra.errors import HydraException

    try:
        return OverridesParser.create().parse_overrides([override])[0]
    except HydraException as error:
        lines = [line for line in str(error).splitlines() if not line.startswith(("Error parsing", "See https"))]
        raise ConfigError(f"{override}: {unreadable(override, lines[0])}") from None


def unreadable(override: str, reason: str) -> str:
    """What is wrong with an override that Hydra cannot parse, and what to write. reason: Hydra's."""
    key, _, value = override.partition("=")
    without_closed = re.sub(r"(?<!\\)(['\"]).*?(?<!\\)\1", "", value)
    if quote := re.search(r"['\"]", without_closed):
        return f"a quote is not closed; add the second {quote[0]}"
    if value.endswith(","):
        return "there is no value after the last comma; write the values without spaces: KEY=A,B"
    if odd := re.search(r"[^\w\s.,:=()\[\]{}/\\+$%*@?|-]|[^\x00-\x7f]", without_closed):
        return f"Hydra reads {odd[0]!r} only in quotes; write {shlex.quote(f'{key}={quoted(value, double=True)}')}"
    return f"{reason}; {HINT}"


def refuse_loose_words(typed: Sequence[str]) -> None:
    """Raise ConfigError for `smooth=4, 8`: two arguments, the second of which is no override."""
    for index, word in enumerate(typed):
        if "=" in word[1:] or word.startswith("~"):
            continue
        following = [word]
        for other in typed[index + 1 :]:
            if "=" in other:
                break
            following.append(other)
        before = typed[index - 1] if index else ""
        if before.endswith((",", "=")) or word.startswith((",", "=")):
            start = f"{before} {' '.join(following)}"
            raise ConfigError(f"{start}: spaces split this into {1 + len(following)} arguments; write {_joined(start)}")
        raise ConfigError(f"{word}: not of the form KEY=VALUE; {HINT}")


def _joined(words: str) -> str:
    return re.sub(r"\s*([,=])\s*", r"\1", words)


def refuse_repeated_sweeps(overrides: Sequence[str]) -> None:
    """Raise ConfigError for `seed=0,1 seed=2,3`: Hydra keeps the last one, and runs two points of four."""
    seen: dict[str, str] = {}
    for override in overrides:
        key, equals, value = override.partition("=")
        before = seen.get(key)
        if equals and before is not None and (is_several(before) or is_several(value)):
            raise ConfigError(f"{key}={before} and {key}={value}: name a key once, {key}={before},{value}")
        if equals:
            seen[key] = value


def is_several(value: str) -> bool:
    """Whether Hydra makes several runs of `key=VALUE`: a list or a quoted text is one value."""
    return "," in re.sub(r"\[.*\]|\{.*\}|'.*'|\".*\"", "", value)


# ---- choices of groups ----------------------------------------------------------------------------------------------


def quote_choices(override: str) -> str:
    """`smooth=4,8` -> `smooth='4','8'`: Hydra rejects a bare number as a group's choice. Functions are expanded."""
    key, equals, value = override.partition("=")
    if not equals or not value or not group_values(key):
        return override
    read = parsed(override)
    if isinstance(read.value(), str):  # a single name, or a number in quotes
        return override
    return f"{key}={','.join(map(_choice, _elements(read, override)))}"


def _elements(override: Any, typed: str) -> list[Any]:
    """The values of an override, one by one."""
    from hydra.core.override_parser.types import Glob

    value = override.value()
    if isinstance(value, Glob):
        choices = group_values(override.key_or_group)
        names = Glob(*([str(pattern) for pattern in some] for some in (value.include, value.exclude))).filter(choices)
        if not names:
            raise ConfigError(f"{typed}: no value matches; choose {', '.join(choices)}")
        return [int(name) if name.isdigit() else name for name in names]
    if not override.is_sweep_override():
        return [value]
    if not override.is_discrete_sweep():
        raise ConfigError(f"{typed}: name the values, as in {override.key_or_group}=4,8")
    return list(override.sweep_iterator())


def _choice(element: Any) -> str:
    if element is None or isinstance(element, bool):
        return f"'{json.dumps(element)}'"
    number = isinstance(element, int | float)
    return f"'{element:g}'" if number else getattr(element, "with_quotes", element.__str__)()


def quote_paths(override: str) -> str:
    """`data.root=~/my data` -> `data.root='/home/me/my data'`: most characters of a path belong to Hydra's grammar.

    A comma-separated list stays one, a sweep, if each of its paths exists and the whole does not. Text in quotes,
    Hydra's functions and interpolations are left as they are.
    """
    key, _, value = override.partition("=")
    if key.lstrip("+") not in PATH_KEYS or not value or "${" in value:
        return override
    if not _exists(value) and (value[0] in "'\"" or FUNCTION.fullmatch(value)):
        return override
    return f"{key}={','.join(map(_path, _existing(value.split(',')) or [value]))}"


def _existing(parts: list[str]) -> list[str] | None:
    """The parts between commas as existing paths, or None. A path may contain commas, so the longest one counts."""
    for end in range(len(parts), 0, -1):
        path = ",".join(parts[:end])
        rest = [] if end == len(parts) else _existing(parts[end:])
        if rest is not None and (path in NAMES or _exists(path)):
            return [path, *rest]
    return None


def _path(path: str) -> str:
    path = os.path.expanduser(path)
    is_plain = PLAIN_PATH.fullmatch(path) and path.lower() not in ("true", "false", "inf", "nan")
    return path if is_plain else quoted(path)


def quoted(text: str, *, double: bool = False) -> str:
    """As a quoted value of Hydra's grammar."""
    from hydra.core.override_parser.types import Quote, QuotedString

    return QuotedString(text, Quote.double if double else Quote.single).with_quotes()


def _exists(path: str) -> bool:
    try:
        return os.path.exists(os.path.expanduser(path))
    except ValueError:  # a null character
        return False
