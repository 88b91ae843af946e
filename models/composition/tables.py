"""Measured and ranked compositions as text a person can read: fixed-width tables.

Source:  own.
Symbols: "none" was looked for and not found, "-" was not asked for.
"""

from collections.abc import Mapping, Sequence

from ..common.anchor import Anchor
from .control import ControlStatistics
from .score import CompositionScore

NAMES = {
    "horizon": "horizon",
    "tilt_deg": "tilt",
    "subject_x": "subject x",
    "subject_y": "subject y",
}


def describe_anchor(anchor: Anchor, nothing: str = "nothing") -> str:
    """One line for one anchor; parts that are None are left out."""
    words = []
    if anchor.horizon is not None:
        words.append(f"horizon {anchor.horizon:.2f}")
    if anchor.tilt_deg is not None:
        words.append(f"tilt {_signed(anchor.tilt_deg)} deg")
    if anchor.subject_x is not None and anchor.subject_y is not None:
        words.append(f"subject {_place(anchor)}")
    elif anchor.subject_x is not None:
        words.append(f"subject x {anchor.subject_x:.2f}")
    elif anchor.subject_y is not None:
        words.append(f"subject y {anchor.subject_y:.2f}")
    return ", ".join(words) or nothing


def measure_table(
    found: Sequence[Anchor],
    confidences: Sequence[tuple[float, float]],
    scores: Sequence[CompositionScore] | None = None,
) -> str:
    """What was found in each picture, with the errors when a target is given.

    Args:
        found: measured anchor per picture.
        confidences: of the horizon and of the subject per picture, 0..1.
        scores: against the target per picture, or None without a target.
    """
    headers = ["image", "horizon", "sure", "tilt", "subject x y", "sure"]
    rows = []
    for index, (anchor, (horizon_sure, subject_sure)) in enumerate(
        zip(found, confidences, strict=True)
    ):
        row = [f"{index}", _number(anchor.horizon), f"{horizon_sure:.2f}"]
        row += [_tilt(anchor.tilt_deg), _place(anchor), f"{subject_sure:.2f}"]
        rows.append(row)
    if scores is not None:
        headers += ["wanted", *_ERROR_HEADERS, "score"]
        for row, score in zip(rows, scores, strict=True):
            row += [_short_anchor(score.wanted), *_error_cells(score), f"{score.total:.3f}"]
    return format_table(headers, rows)


def ranking_table(scores: Sequence[CompositionScore], order: Sequence[int]) -> str:
    """The ranking, best first, with what was wanted and found and the error per part.

    Args:
        scores: per picture, in the order of the batch.
        order: indices of the pictures, best first.
    """
    same = len({score.wanted for score in scores}) == 1
    headers = ["rank", "image", "score", *([] if same else ["wanted"])]
    headers += ["horizon", "tilt", "subject x y", *_ERROR_HEADERS, "on third"]
    rows = []
    for rank, index in enumerate(order, start=1):
        score = scores[index]
        row = [f"{rank}", f"{index}", f"{score.total:.3f}"]
        row += [] if same else [_short_anchor(score.wanted)]
        row += [_number(score.found.horizon), _tilt(score.found.tilt_deg), _place(score.found)]
        row += [*_error_cells(score), _thirds_cell(score)]
        rows.append(row)
    first = f"wanted: {describe_anchor(scores[0].wanted)}\n\n" if same else ""
    return first + format_table(headers, rows)


def control_table(statistics: Mapping[str, ControlStatistics]) -> str:
    """Control statistics, one line per part."""
    headers = ["part", "pictures", "gain", "rho", "mean error", "shuffled p", "not found"]
    rows = []
    for part, found in statistics.items():
        row = [NAMES[part], f"{found.requested}", _number(found.gain, "-"), _number(found.rho, "-")]
        row += [_number(found.mean_error, "-", 3), _number(found.shuffled_p, "-", 4)]
        rows.append([*row, f"{found.abstention:.0%}"])
    return format_table(headers, rows)


def format_table(headers: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """Right-aligned columns of equal width, a rule under the headers, no trailing blanks."""
    widths = [max(map(len, column)) for column in zip(headers, *rows, strict=True)]
    lines = [headers, ["-" * width for width in widths], *rows]
    return "\n".join(
        "  ".join(cell.rjust(width) for cell, width in zip(line, widths, strict=True))
        for line in lines
    )


_ERROR_HEADERS = ("horizon off", "tilt off", "subject off")


def _error_cells(score: CompositionScore) -> list[str]:
    errors = score.errors
    values = {"horizon": errors.horizon, "tilt": errors.tilt_deg, "subject": errors.subject}
    digits = {"horizon": 3, "tilt": 1, "subject": 3}
    return [
        "none" if part in errors.missing else _number(value, "-", digits[part])
        for part, value in values.items()
    ]


def _thirds_cell(score: CompositionScore) -> str:
    near = (("horizon", score.thirds.is_horizon_near), ("subject", score.thirds.is_subject_near))
    return "+".join(name for name, is_near in near if is_near) or "-"


def _short_anchor(anchor: Anchor) -> str:
    return f"{_number(anchor.horizon, '-')} {_tilt(anchor.tilt_deg, '-')} {_place(anchor, '-')}"


def _number(value: float | None, absent: str = "none", digits: int = 2) -> str:
    return absent if value is None else f"{value:.{digits}f}"


def _tilt(value: float | None, absent: str = "none") -> str:
    return absent if value is None else _signed(value)


def _signed(value: float) -> str:
    text = f"{value:+.1f}"
    return "0.0" if float(text) == 0 else text


def _place(anchor: Anchor, absent: str = "none") -> str:
    if anchor.subject_x is None and anchor.subject_y is None:
        return absent
    return f"{_number(anchor.subject_x, '-')} {_number(anchor.subject_y, '-')}"
