"""Conditions on settings, states and numbers: `schedule=50ep`, `smooth>4`, `dynamic_scale=type1,type2`."""

from __future__ import annotations

import difflib
import operator
import re
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, replace

from fovea_detr.errors import UserError

COMPARE: dict[str, Callable[[float, float], bool]] = {
    ">": operator.gt,
    "<": operator.lt,
    ">=": operator.ge,
    "<=": operator.le,
}


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
            return any(_equal(found, value) for value in self.value.split(",")) == (self.sign == "=")
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


def as_fractions(conditions: Iterable[Condition], metrics: Iterable[str]) -> list[Condition]:
    """Conditions on metrics, `AP>0.4` or `AP>40%`, in fractions. Raises UserError for `AP>40`."""
    found = []
    for condition in conditions:
        number = _number(condition.value.removesuffix("%"))
        if condition.key in metrics and number is not None:
            is_percent = condition.value.endswith("%")
            if number > 1 and not is_percent:
                hint = f"{condition.key}{condition.sign}"
                raise UserError(
                    f"{condition.text!r}: {condition.key} is a fraction in conditions: write {hint}{number / 100:g} or "
                    f"{hint}{number:g}%"
                )
            condition = replace(condition, value=f"{number / 100 if is_percent else number:.12g}")
        found.append(condition)
    return found


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
