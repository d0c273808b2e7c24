"""Columns of JSON values -> arrays, with a mask of the values that could be converted."""

from __future__ import annotations

import re
from collections.abc import Sequence
from contextlib import suppress
from itertools import chain
from numbers import Integral, Real
from operator import itemgetter
from typing import Any

import numpy as np

Column = tuple[np.ndarray, np.ndarray]  # the values, and [n] bool: which of them are valid
NUMBER = re.compile(r"\s*[+-]?(\d+\.?\d*|\.\d+)([eE][+-]?\d+)?\s*", re.ASCII)
INTEGER = re.compile(r"\s*[+-]?\d{1,20}\s*", re.ASCII)


def fields(entries: list[Any], key: str) -> list[Any]:
    """One field of every entry; None where it is absent or the entry is not an object."""
    with suppress(KeyError, TypeError):
        return list(map(itemgetter(key), entries))  # a third of the time
    return [entry.get(key) if isinstance(entry, dict) else None for entry in entries]


def integers(values: Sequence[Any]) -> Column:
    """[n] int64. Valid: 3, 3.0 and "3". Not valid: true, 3.5, null, a list, anything beyond 64 bits."""
    if set(map(type, values)) == {int}:
        with suppress(OverflowError):
            return np.array(values, np.int64), np.ones(len(values), bool)
    found = [_integer(value) for value in values]
    return np.array([value or 0 for value in found], np.int64), np.array([v is not None for v in found], bool)


def numbers(values: Sequence[Any]) -> Column:
    """[n] float64. Valid: finite numbers and strings of them ("299.4249"). Not valid: true, NaN, null, a list."""
    if set(map(type, values)) <= {int, float}:
        with suppress(OverflowError):
            column = np.array(values, np.float64)
            return column, np.isfinite(column)
    column = np.array([_number(value) for value in values], np.float64)
    return column, np.isfinite(column)


def quadruples(values: Sequence[Any]) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """[n, 4] float64, and two masks [n]: lists of four entries; those of which all four are numbers."""
    complete = np.ones(len(values), bool)
    if not (set(map(type, values)) <= {list} and set(map(len, values)) <= {4}):
        complete = np.array([isinstance(v, list | tuple | np.ndarray) and len(v) == 4 for v in values], bool)
        values = [value if is_one else (None,) * 4 for value, is_one in zip(values, complete, strict=True)]
    flat, valid = numbers(list(chain.from_iterable(values)))
    return flat.reshape(-1, 4), complete, np.asarray(valid.reshape(-1, 4).all(axis=1))


def flags(values: Sequence[Any]) -> Column:
    """[n] bool. Valid: any number ("0" too; every number but 0 is true), true, false, and null, which is false."""
    if set(map(type, values)) <= {int, bool, type(None)}:
        return np.array([bool(value) for value in values], bool), np.ones(len(values), bool)
    column, valid = numbers([int(value or 0) if isinstance(value, bool | None) else value for value in values])
    return column.astype(bool), valid


def _integer(value: Any) -> int | None:
    if isinstance(value, str) and INTEGER.fullmatch(value):
        value = int(value)
    if isinstance(value, Integral) and not isinstance(value, bool):
        return int(value) if -(1 << 63) <= int(value) < 1 << 63 else None
    number = _number(value)
    return int(number) if number.is_integer() and abs(number) <= 1 << 53 else None


def _number(value: Any) -> float:
    """NaN for what is not a number."""
    is_number = NUMBER.fullmatch(value) if isinstance(value, str) else isinstance(value, Real)
    if not is_number or isinstance(value, bool):
        return float("nan")
    try:
        return float(value)
    except OverflowError:
        return float("inf")
