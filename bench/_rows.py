"""The lines that every bench prints and saves."""

import json
import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

RESULTS = Path(__file__).resolve().parent / "results"


@dataclass(frozen=True)
class Row:
    """One bar, or one figure for the record where there is no bound."""

    what: str
    ours: float
    baseline: float | None = None
    bound: float | None = None
    at_least: bool = True
    upper: float | None = None  # what the measuring itself reaches on true pictures
    interval: tuple[float, float] | None = None  # of `ours`, 95 %

    @property
    def holds(self) -> bool | None:
        if self.bound is None:
            return None
        return self.ours >= self.bound if self.at_least else self.ours <= self.bound


def report(name: str, rows: Sequence[Row], keep_others: bool = False) -> None:
    """Print the rows as a table and write them to bench/results/NAME.json.

    Args:
        name: of the bench.
        rows: what was measured.
        keep_others: leave the file's rows of other names; the bench measured a part only.
    """
    print(f"{'what':62} {'ours':>8} {'baseline':>9} {'upper':>8}  {'bound':>9}")
    for row in rows:
        bound = "" if row.bound is None else f"{'>=' if row.at_least else '<='} {row.bound:g}"
        verdict = {True: "holds", False: "falls short", None: ""}[row.holds]
        if row.interval is not None:
            verdict = f"{row.interval[0]:.3f} to {row.interval[1]:.3f}  {verdict}".rstrip()
        print(
            f"{row.what:62} {row.ours:8.3f} {_told(row.baseline):>9} {_told(row.upper):>8}"
            f"  {bound:>9}  {verdict}"
        )
    RESULTS.mkdir(parents=True, exist_ok=True)
    path = RESULTS / f"{name}.json"
    measured = {row.what: _saved(row) for row in rows}
    before = json.loads(path.read_text()) if keep_others and path.exists() else []
    entries = {entry["what"]: entry for entry in before} | measured
    path.write_text(json.dumps(list(entries.values()), indent=1) + "\n")


def _saved(row: Row) -> dict[str, object]:
    """A row as JSON knows it: a figure that could not be measured is null."""
    entries = {**asdict(row), "holds": row.holds}
    return {
        name: None if isinstance(value, float) and math.isnan(value) else value
        for name, value in entries.items()
        if name != "interval" or value is not None
    }


def _told(value: float | None) -> str:
    return "-" if value is None else f"{value:.3f}"
