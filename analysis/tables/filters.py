"""Conditions on settings, states and numbers: `schedule=50ep`, `smooth>4`, `dynamic_scale=type1,type2`."""

from __future__ import annotations

import difflib
import operator
import re
from collections.abc import Iterable
from dataclasses import dataclass, replace

from fovea_detr.errors import UserError

PYTHON = {"True": ("true",), "False": ("false",), "None": ("null", "none")}  # its words -> those of settings
COMPARE = {">": operator.gt, "<": operator.lt, ">=": operator.ge, "<=": operator.le}


@dataclass(frozen=True)
class Condition:
    """One comparison. text: as typed by the user; value: may list alternatives, `A,B`, for = and !=."""

    text: str
    key: str
    sign: str
    value: str

    def holds(self, found: str | float | None) -> bool:
        """Whether the value fulfils the condition. None (unknown) fulfils only !=."""
        if self.sign in ("=", "!="):
            values = (self.value, *self.value.split(","))  # a path may hold a comma
            is_equal = found is not None and any(_equal(found, value) for value in values)
            return is_equal == (self.sign == "=")
        number = _number(found)
        return number is not None and COMPARE[self.sign](number, float(self.value))


def parse_conditions(texts: Iterable[str], keys: Iterable[str]) -> list[Condition]:
    """The conditions with their keys in full. Raises UserError for an invalid condition or an unknown key."""
    known = list(keys)
    found = []
    for text in (part for whole in texts for part in re.split(r",(?=[\w.@/]+\s*[=<>!])", whole)):
        match = re.fullmatch(r"\s*([\w.@/]+)\s*(==|!=|>=|<=|=|>|<)\s*(.+?)\s*", text)
        if match is None:
            raise UserError(f"{text!r} is not a condition: use KEY=VALUE, KEY=A,B, KEY!=VALUE, KEY>NUMBER (>=, <, <=)")
        key, sign, value = match.groups()
        if sign in COMPARE and _number(value.removesuffix("%")) is None:
            raise UserError(f"{text!r}: {sign} compares numbers, and {value} is not a number")
        found.append(Condition(text, full_key(key, known), "=" if sign == "==" else sign, value))
    return found


def full_key(key: str, known: Iterable[str]) -> str:
    """The only known key that is or ends in `key`: `smooth` -> `fovea.smooth`. Raises UserError for none or several."""
    known = list(dict.fromkeys(known))
    if key in known:
        return key
    ends = [other for other in known if other.endswith(f".{key}")]
    if len(ends) == 1:
        return ends[0]
    if ends:
        raise UserError(f"{key} is ambiguous: {', '.join(ends)}; give the full name")
    words = {word: other for other in known for word in (other, other.rpartition(".")[2])}
    close = dict.fromkeys(words[word] for word in difflib.get_close_matches(key, words, n=3, cutoff=0.5))
    near = ", ".join(dict.fromkeys([*close, *known][: max(len(close), 6)]))
    raise UserError(f"there is no {key}; choose from {near}{', ...' if len(known) > 6 else ''}")


def as_fraction(condition: Condition) -> Condition:
    """A condition on a metric, `AP>0.4` or `AP>40%`, in fractions. Raises UserError for `AP>40`."""
    digits = condition.value.removesuffix("%")
    number = _number(digits)
    if number is None:
        return condition
    if digits != condition.value:
        return replace(condition, value=f"{number / 100:.12g}")
    if number > 1:
        start = f"{condition.key}{condition.sign}"
        hint = f"write {start}{number / 100:g} or {start}{number:g}%"
        raise UserError(f"{condition.text!r}: {condition.key} is a fraction in conditions: {hint}")
    return condition


def _equal(found: str | float | None, value: str) -> bool:
    number = _number(found)
    same = (value, *PYTHON.get(value, ()))
    return str(found) in same if number is None else number == _number(value)


def _number(value: str | float | None) -> float | None:
    try:
        return None if value is None else float(value)
    except ValueError:
        return None
