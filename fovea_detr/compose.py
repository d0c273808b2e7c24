"""From a list of overrides to the Config, and Hydra's errors in one line."""

from __future__ import annotations

import re
import traceback
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from omegaconf import DictConfig, ListConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from fovea_detr.config.checks import check
from fovea_detr.config.groups import group_values
from fovea_detr.config.local import with_local
from fovea_detr.config.overrides import HINT, rewrite
from fovea_detr.config.schema import CONF_DIR, Config, leaves
from fovea_detr.config.suggest import suggestion
from fovea_detr.errors import ConfigError, UserError


def parse(composed: DictConfig) -> Config:
    """Hydra's composition -> the typed, range-checked Config. Raises ConfigError, one line, at the first mistake."""
    refuse_values_of_nodes(composed)
    with config_errors():
        typed = OmegaConf.merge(OmegaConf.structured(Config), composed)
    return checked(typed)


def checked(typed: DictConfig | ListConfig) -> Config:
    """A composition that has the schema's types -> the Config. Raises ConfigError."""
    with config_errors():
        config = OmegaConf.to_object(typed)
    assert isinstance(config, Config)
    check(config)
    return config


@contextmanager
def config_errors() -> Iterator[None]:
    """OmegaConf's errors as ConfigErrors."""
    try:
        yield
    except OmegaConfBaseException as error:
        where = error.full_key or "the configuration"
        raise ConfigError(f"{where}: {str(error).splitlines()[0]}; {HINT}") from None


def refuse_values_of_nodes(composed: DictConfig) -> None:
    """Raise ConfigError for `fovea=false`: a node holds keys and has no value of its own."""
    for name, default in vars(Config()).items():
        is_node = leaves(default).keys() != {""}
        if is_node and name in composed and not isinstance(composed[name], DictConfig):
            raise ConfigError(f"{name}={composed[name]}: {name} is not a single value; {suggestion(name)}{HINT}")


def load_config(overrides: list[str] | None = None) -> Config:
    """Compose `conf/` with overrides as on the command line: `load_config(["model=fovea_r50", "fovea.smooth=4"])`.

    Raises ConfigError for an unknown key or group value, a wrong type or a value out of range.
    """
    from hydra import compose, initialize_config_dir

    rewritten = rewrite(overrides or [])
    with initialize_config_dir(str(CONF_DIR), version_base="1.3"):
        try:
            composed = compose("config", rewritten)
        except Exception as error:
            if not is_users(error):
                raise
            raise ConfigError(one_line(error)) from None
    return parse(with_local(composed, rewritten))


def one_line(error: BaseException) -> str:
    """A message of Hydra or OmegaConf, which has many lines, as one line that says what to do."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    text = "; ".join(lines)
    if match := re.search(r"Could not override '([^']+)'", text):
        return f"unknown key '{match[1]}' on the command line; {suggestion(match[1])}{HINT}"
    if match := re.search(r"Ambiguous value for argument '(.+?)'; 1\.", text):
        parts = f"; several parts at once: {match[1].replace(',', '+')}" if match[1].startswith("train.freeze=") else ""
        return f"{match[1]}: several values make a sweep: add -m{parts}; {HINT}"
    if match := re.search(r"Could not find '([^']+)'", text):
        group, _, value = match[1].rpartition("/")
        return f"{group}={value}: there is no such value; {_values_of(group)}{HINT}"
    return re.sub(r";? *(Config search path|Set the environment variable).*", "", text)


def _values_of(group: str) -> str:
    names = group_values(group)
    by_leaf = " (any other number: fovea.smooth=...)" if group == "smooth" else ""
    return f"choose {', '.join(names)}{by_leaf}; " if names else ""


def is_users(error: Exception) -> bool:
    """Whether an error is about what was typed: ours, Hydra's, OmegaConf's. Hydra raises some as bare ValueErrors."""
    from hydra.errors import HydraException

    frames = traceback.extract_tb(error.__traceback__)
    inside_hydra = bool(frames) and "hydra" in Path(frames[-1].filename).parts
    known = isinstance(error, UserError | HydraException | OmegaConfBaseException)
    return known or (isinstance(error, ValueError) and inside_hydra)
