"""From the command line, or a list of overrides, to the Config: rewriting for Hydra, and errors in one line."""

from __future__ import annotations

import re
import traceback
from collections.abc import Sequence
from pathlib import Path

from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from fovea_detr.config.checks import check
from fovea_detr.config.schema import CONF_DIR, Config
from fovea_detr.errors import ConfigError, UserError

NUMERIC_GROUPS = ("smooth",)
PATH_KEYS = ("weights", "runs", "data.root", "data.cache", "model.backbone_weights")
PATH_KEYS += ("data.train.annotations", "data.train.images", "data.val.annotations", "data.val.images")
HINT = "see `python run.py --help`"


def parse(composed: DictConfig) -> Config:
    """Hydra's composition -> the typed, range-checked Config. Raises ConfigError, one line, at the first mistake."""
    try:
        merged = OmegaConf.merge(OmegaConf.structured(Config), composed)
        config = OmegaConf.to_object(merged)
    except OmegaConfBaseException as error:
        where = error.full_key or "the configuration"
        raise ConfigError(f"{where}: {str(error).splitlines()[0]}; see `python run.py --help`") from None
    assert isinstance(config, Config)
    check(config)
    return config


def load_config(overrides: list[str] | None = None) -> Config:
    """Compose `conf/` with overrides as on the command line: `load_config(["model=fovea_r50", "fovea.smooth=4"])`.

    Raises ConfigError for an unknown key or group value, a wrong type or a value out of range.
    """
    from hydra import compose, initialize_config_dir

    with initialize_config_dir(str(CONF_DIR), version_base="1.3"):
        try:
            composed = compose("config", rewrite(overrides or []))
        except Exception as error:
            if not is_users(error):
                raise
            raise ConfigError(one_line(error)) from None
    return parse(composed)


def refuse_repeated_sweeps(arguments: Sequence[str]) -> None:
    """Raise ConfigError for `seed=0,1 seed=2,3` in a sweep: Hydra keeps the last one, and runs two points of four."""
    if not {"-m", "--multirun"} & set(arguments):
        return
    seen: dict[str, str] = {}
    for argument in arguments:
        key, equals, value = argument.partition("=")
        before = seen.get(key)
        if equals and before is not None and (is_several(before) or is_several(value)):
            raise ConfigError(f"{key}={before} and {key}={value}: name a key once, {key}={before},{value}")
        if equals:
            seen[key] = value


def is_several(value: str) -> bool:
    """Whether Hydra makes several runs of `key=VALUE`: a list or a quoted text is one value."""
    return "," in re.sub(r"\[.*\]|\{.*\}|'.*'|\".*\"", "", value)


def quote_numeric_choices(arguments: Sequence[str]) -> list[str]:
    """`smooth=4,8` -> `smooth='4','8'`: Hydra reads a bare number as a value and rejects it as a group's choice."""
    pattern = re.compile(rf"({'|'.join(NUMERIC_GROUPS)})=(-?[0-9.,]+)")
    quoted = []
    for argument in arguments:
        match = pattern.fullmatch(argument)
        if match:
            choices = ",".join(f"'{choice}'" for choice in match[2].split(","))
            argument = f"{match[1]}={choices}"
        quoted.append(argument)
    return quoted


def quote_existing_paths(arguments: Sequence[str]) -> list[str]:
    """`weights=runs/x/a=1,b=2/checkpoint.pt` -> the value quoted: `=` and `,` are Hydra's grammar and our names.

    Only a value that exists on disk just as it stands is quoted, so that a list of paths is still a sweep.
    """
    quoted = []
    for argument in arguments:
        key, equals, value = argument.partition("=")
        if equals and key in PATH_KEYS and re.search(r"[=,(){}\[\]:]", value) and _exists(value):
            argument = f"{key}='{value}'"
        quoted.append(argument)
    return quoted


def _exists(path: str) -> bool:
    try:
        return Path(path).expanduser().exists()
    except OSError:  # longer than a file system allows: a list of paths
        return False


def rewrite(arguments: Sequence[str]) -> list[str]:
    """The command line as typed -> the same in Hydra's grammar."""
    return quote_existing_paths(quote_numeric_choices(arguments))


def one_line(error: BaseException) -> str:
    """A message of Hydra or OmegaConf, which has many lines, as one line that says what to do."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    text = "; ".join(lines)
    if match := re.search(r"Could not override '([^']+)'", text):
        return f"unknown key '{match[1]}' on the command line; {HINT}"
    if match := re.search(r"Could not find '([^']+)'", text):
        group, _, value = match[1].rpartition("/")
        return f"{group}={value}: there is no such value; {_values_of(group)}{HINT}"
    return re.sub(r";? *(Config search path|Set the environment variable).*", "", text)


def _values_of(group: str) -> str:
    names = sorted((path.stem for path in (CONF_DIR / group).glob("*.yaml")), key=_by_number)
    by_leaf = " (any other number: fovea.smooth=...)" if group == "smooth" else ""
    return f"choose {', '.join(names)}{by_leaf}; " if names else ""


def _by_number(name: str) -> list[tuple[int, str]]:
    """A sorting key that puts 4 before 16."""
    return [(int(part or 0), "") if i % 2 else (0, part) for i, part in enumerate(re.split(r"(\d+)", name))]


def is_users(error: Exception) -> bool:
    """Whether an error is about what was typed: ours, Hydra's, OmegaConf's. Hydra raises some as bare ValueErrors."""
    from hydra.errors import HydraException

    frames = traceback.extract_tb(error.__traceback__)
    inside_hydra = bool(frames) and "hydra" in Path(frames[-1].filename).parts
    known = isinstance(error, UserError | HydraException | OmegaConfBaseException)
    return known or (isinstance(error, ValueError) and inside_hydra)
