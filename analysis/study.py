"""The Python API: the runs of a study as pandas frames, its table, and the comparison of two rows.

from analysis import load

study = load("runs/mystudy")
study.runs, study.epochs, study.categories  # tidy frames; metrics are fractions, in full precision
study.table(baseline="dynamic_scale=type1")  # one line per row, mean and spread over seeds
study.compare("type1", "type2")  # by metric: the difference with its intervals and verdict
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

from analysis.reading.folders import find_runs, is_study
from analysis.tables.comparison import find_row
from analysis.tables.rows import Row
from analysis.tables.table import Options, Table, make_table

if TYPE_CHECKING:
    import pandas as pd


def load(path: Path | str, studies: Sequence[str] = (), where: Sequence[str] = ()) -> Study:
    """A study, or a folder of studies: all of them or those named. where: conditions as of the command, `smooth=4`.

    Raises UserError, one line, if there is no run.
    """
    path = Path(path)
    root, names = (path.parent, [path.name]) if is_study(path) else (path, list(studies))
    return Study(make_table(find_runs(root, names), Options(where=tuple(where), tested=False)))


@dataclass(frozen=True)
class Study:
    """The rows of one reading of the run folders. What the table prints is computed from the same rows.

    A run counts if it is what the table averages: finished, once per seed; where no run of a row has finished, those
    that are furthest, and the row is not `finished`. The frames have the columns that tables/frames.py tells.
    """

    read: Table

    @property
    def rows(self) -> list[Row]:
        return self.read.rows

    @property
    def axes(self) -> list[str]:
        """The settings that vary, in full."""
        keys = {key for row in self.rows for key in row.settings}
        return [column.name for column in self.read.every if column.name in keys]

    @property
    def problems(self) -> list[str]:
        """What could not be read, and what was counted once."""
        return [*self.read.warnings, *(f"{run.path}: {line}" for run in self.read.runs for line in run.problems)]

    @cached_property
    def runs(self) -> pd.DataFrame:
        """One line per run."""
        return _frames().runs_frame(self.rows, self.axes)

    @cached_property
    def epochs(self) -> pd.DataFrame:
        """One line per run and epoch."""
        return _frames().epochs_frame(self.rows, self.axes)

    @cached_property
    def categories(self) -> pd.DataFrame:
        """One line per run and category."""
        return _frames().categories_frame(self.rows, self.axes)

    def table(self, **options: Any) -> pd.DataFrame:
        """The table of the command, unrounded, metrics as fractions. options: those of tables/table.py, `Options`."""
        return _frames().table_frame(make_table(self.read.runs, Options(**options)))

    def compare(self, a: str, b: str, metrics: Sequence[str] = "AP") -> pd.DataFrame:
        """b minus a by metric, in fractions: difference, low, high (95 %), verdict, needs, method.

        a, b: the variant's name, or KEY=VALUE,... of a row. Raises UserError if it is none, or several.
        """
        from analysis.tables.verdicts import contrast  # only here: it loads scipy

        options, first, second = Options(metrics), find_row(self.rows, a, ""), find_row(self.rows, b, "")
        found = contrast(self.rows, first, second, options.metrics_of([*first.runs, *second.runs]))
        return _frames().differences_frame(found)


def _frames() -> Any:
    from analysis.tables import frames  # only here: it loads pandas

    return frames
