"""What every axis of the fovea has: one yaml per class, of the same name everywhere, and rules that its values keep."""

from __future__ import annotations

import importlib

import pytest

from fovea_detr.config.checks import WORKS_WITH
from fovea_detr.config.schema import AXES
from tests.fovea.priors import KERNELS, TYPES, classes, yamls

BASES = {"DynamicScale"}  # classes that are no value


@pytest.mark.parametrize("axis", AXES)
def test_every_class_has_a_yaml_and_every_yaml_its_own_name(axis: str) -> None:
    module = importlib.import_module(f"fovea_detr.fovea.{axis}")
    defined = {value for value in vars(module).values() if isinstance(value, type)}
    defined = {value for value in defined if value.__module__ == module.__name__ and value.__name__ not in BASES}
    assert set(classes(axis).values()) == defined
    assert all(node["name"] == name for name, node in yamls(axis).items())


def test_the_rule_of_the_kernels_agrees_with_the_classes() -> None:
    """The composition's rule is a table of names, because it must not import torch."""
    restricted = {("kernel", name) for name, kernel in KERNELS.items() if kernel.per_axis}
    assert {rule for rule in WORKS_WITH if rule[0] == "kernel"} == restricted
    for rule in restricted:
        axis, allowed = WORKS_WITH[rule]
        assert axis == "dynamic_scale"
        assert all(TYPES[name].per_axis for name in allowed)
