"""Search for the weakest setting that keeps a picture well enough."""

from collections.abc import Callable

ROUNDS = 6  # halvings: to 1/64 of the range


def least_reaching(
    measure: Callable[[float], float], wanted: float, low: float, high: float, rounds: int = ROUNDS
) -> tuple[float, float]:
    """Bisect for the smallest setting whose measure reaches what is wanted.

    Args:
        measure: rises with the setting, by and large.
        wanted: of the measure.
        low: smallest setting.
        high: largest setting.
        rounds: halvings of the range.

    Returns:
        The setting and its measure; `high` if even that falls short, `low` if that is enough.
    """
    least = measure(low)
    if least >= wanted:
        return low, least
    most = measure(high)
    found = high, most
    if most < wanted:
        return found
    for _ in range(rounds):
        middle = (low + high) / 2
        value = measure(middle)
        if value >= wanted:
            high, found = middle, (middle, value)
        else:
            low = middle
    return found
