"""Anchors between key anchors: one per frame of an animation."""

from collections.abc import Callable, Sequence

from .anchor import Anchor

EASINGS: dict[str, Callable[[float], float]] = {
    "linear": lambda t: t,
    "smooth": lambda t: t * t * (3.0 - 2.0 * t),  # rests at every key
}


def anchor_sequence(anchor: Sequence[Anchor], frames: int, easing: str) -> tuple[Anchor, ...]:
    """Move from key anchor to key anchor, at equal distances in time.

    A part that one of two neighbouring keys leaves open is open between them.

    Args:
        anchor: the keys, two at least; first and last frame are exactly the first and last key.
        frames: how many anchors to make, as many as there are keys at least.
        easing: name in `EASINGS`.

    Raises:
        ValueError: too few keys, or fewer frames than keys.
    """
    if len(anchor) < 2:
        raise ValueError(
            f"anchor holds {len(anchor)} key frame, two at least are needed; chain Composition "
            "Anchor nodes through append_to"
        )
    if frames < len(anchor):
        raise ValueError(
            f"frames is {frames}, anchor holds {len(anchor)} key frames; ask for {len(anchor)} "
            "frames at least"
        )
    ease = EASINGS[easing]
    return tuple(_frame(anchor, index, frames - 1, ease) for index in range(frames))


def _frame(keys: Sequence[Anchor], index: int, last: int, ease: Callable[[float], float]) -> Anchor:
    key, rest = divmod(index * (len(keys) - 1), last)  # whole numbers: a frame on a key is that key
    if rest == 0:
        return keys[key]
    share, before, after = ease(rest / last), keys[key], keys[key + 1]
    return Anchor(
        horizon=_between(before.horizon, after.horizon, share),
        tilt_deg=_between(before.tilt_deg, after.tilt_deg, share),
        subject_x=_between(before.subject_x, after.subject_x, share),
        subject_y=_between(before.subject_y, after.subject_y, share),
    )


def _between(before: float | None, after: float | None, share: float) -> float | None:
    if before is None or after is None:
        return None
    return before + (after - before) * share
