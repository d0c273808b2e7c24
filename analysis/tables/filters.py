"""`--where "schedule=50ep"`, `smooth>4`, `dynamic_scale=type1,type2`: conditions on settings, states and numbers."""

from __future__ import annotations

import difflib
import operator
import re
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass

from fovea_detr.errors import UserError

COMPARE: dict[str, Callable[[float, float], bool]] = {
    ">": operator.gt,
    "<": operator.lt,
    ">=": operator.ge,
    "<=": operator.le,
}


@dataclass(frozen=True)
class Condition:
    """One comparison. text: as the user typed it."""

    text: str
    key: str
    sign: str
    value: str

    def holds(self, found: str | float | None) -> bool:
        """Nothing known is equal to nothing, and neither smaller nor larger than anything."""
        if self.sign in ("=", "!="):
            return any(_equal(found, value) for value in self.value.split(",")) == (self.sign == "=")
        number = _number(found)
        return number is not None and COMPARE[self.sign](number, float(self.value))


def conditions(texts: Iterable[str], keys: Iterable[str]) -> list[Condition]:
    """What the user asks for, with every key in full. UserError, one line, for what cannot be meant."""
    known = list(keys)
    found = []
    for text in (part for whole in texts for part in re.split(r",(?=[\w.@/]+\s*[=<>!])", whole)):
        match = re.fullmatch(r"\s*([\w.@/]+)\s*(==|!=|>=|<=|=|>|<)\s*(.+?)\s*", text)
        if match is None:
            raise UserError(f"{text!r} is no condition: write KEY=VALUE, KEY=A,B, KEY!=VALUE or KEY>NUMBER (>=, <, <=)")
        key, sign, value = match.groups()
        if sign in COMPARE and _number(value) is None:
            raise UserError(f"{text!r}: {sign} compares numbers, and {value} is none")
        found.append(Condition(text, full_key(key, known), "=" if sign == "==" else sign, value))
    return found


def full_key(key: str, known: Iterable[str]) -> str:
    """The one known key that this is, or ends in this: `smooth` -> `fovea.smooth`. UserError for none or several."""
    known = list(dict.fromkeys(known))
    if key in known:
        return key
    ends = [other for other in known if other.endswith(f".{key}")]
    if len(ends) == 1:
        return ends[0]
    if ends:
        raise UserError(f"{key} may be {', '.join(ends)}: name one in full")
    words = {word: other for other in known for word in (other, other.rpartition(".")[2])}
    close = dict.fromkeys(words[word] for word in difflib.get_close_matches(key, words, n=3, cutoff=0.5))
    near = ", ".join(dict.fromkeys([*close, *known][: max(len(close), 6)]))
    raise UserError(f"there is no {key}; there is {near}{', ...' if len(known) > 6 else ''}")


def lookup(key: str, settings: Mapping[str, str], others: Mapping[str, str | float]) -> str | float | None:
    return settings[key] if key in settings else others.get(key)


def _equal(found: str | float | None, value: str) -> bool:
    if found is None:
        return False
    left, right = _number(found), _number(value)
    return left == right if left is not None and right is not None else str(found) == value


def _number(value: str | float | None) -> float | None:
    try:
        return None if value is None else float(value)
    except ValueError:
        return None
