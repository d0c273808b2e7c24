"""The groups of conf/: their choices, and what `python run.py --help` prints about them."""

from __future__ import annotations

import re

from omegaconf import OmegaConf

from fovea_detr.config.schema import CONF_DIR

DEFAULT = re.compile(r"^  - (\w+): \"?(\w+)\"? # (.+)$", re.MULTILINE)  # a group in conf/config.yaml, and its comment
COMMENT = re.compile(r"^# (?!@package)(.+)$", re.MULTILINE)


def group_values(group: str) -> list[str]:
    """The choices of a group of conf/, 4 before 16."""
    return sorted((path.stem for path in (CONF_DIR / group).glob("*.yaml")), key=natural)


def natural(text: str) -> list[tuple[float, str]]:
    """A sort key that puts 4 before 16."""
    parts = re.split(r"(\d+(?:\.\d+)?)", text)
    return [(float(part), "") if i % 2 else (float("inf"), part) for i, part in enumerate(parts) if part]


def help_of_groups() -> str:
    """The groups with their defaults, from the comments in conf/config.yaml and at the top of each value's file."""
    lines: list[str] = []
    for group, default, comment in DEFAULT.findall((CONF_DIR / "config.yaml").read_text(encoding="utf-8")):
        lines.append(f"  {group:<16}{comment}")
        for value in group_values(group):
            text = COMMENT.search((CONF_DIR / group / f"{value}.yaml").read_text(encoding="utf-8"))
            name = f"{value} [default]" if value == default else value
            lines.append(f"      {name:<22}{text[1] if text else ''}".rstrip())
    return "\n".join(lines).strip()


OmegaConf.register_new_resolver("choices", help_of_groups, replace=True)  # conf/hydra/help/fovea.yaml
