"""Seeded landscapes with exact ground truth: what is drawn, and where horizon and subject are.

A `Scene` is the plan of a picture in frame-independent numbers; `mini.painter` draws it. Positions
are shares of the frame: x 0 left, 1 right; y 0 top, 1 bottom. Tilt is in degrees, positive when the
right end of the horizon is the lower one.
"""

import math
from dataclasses import dataclass

import numpy as np

Rgb = tuple[float, float, float]


@dataclass(frozen=True)
class Sky:
    """Colours (0..255) from the zenith to the horizon, tint of the light, and the caption's words."""

    words: str
    top: Rgb
    low: Rgb
    light: Rgb


@dataclass(frozen=True)
class Ground:
    """Colours near the viewer and at the horizon, texture kind, and the caption's words."""

    words: str
    near: Rgb
    far: Rgb
    texture: str


SKIES = {
    "clear": Sky("under a clear blue sky", (52, 118, 200), (188, 220, 243), (1.0, 1.0, 1.0)),
    "sunset": Sky("at sunset", (62, 58, 122), (252, 152, 84), (1.0, 0.74, 0.62)),
    "dawn": Sky("at dawn", (126, 150, 206), (250, 206, 196), (0.95, 0.86, 0.9)),
    "night": Sky("at night", (8, 12, 36), (42, 54, 98), (0.26, 0.31, 0.46)),
    "grey": Sky("under a grey sky", (148, 154, 162), (206, 210, 214), (0.8, 0.82, 0.85)),
    "storm": Sky("under a stormy sky", (46, 52, 64), (122, 128, 136), (0.56, 0.6, 0.64)),
    "golden": Sky("in golden light", (212, 170, 104), (252, 226, 164), (1.0, 0.88, 0.66)),
}

GROUNDS = {
    "sea": Ground("sea", (22, 70, 104), (92, 148, 178), "waves"),
    "desert": Ground("desert", (206, 152, 88), (226, 190, 136), "dunes"),
    "meadow": Ground("meadow", (64, 122, 48), (140, 172, 96), "grass"),
    "snow": Ground("snow", (228, 234, 244), (208, 218, 234), "drifts"),
    "field": Ground("ploughed field", (104, 74, 48), (160, 128, 92), "rows"),
    "city": Ground("city", (74, 76, 84), (122, 124, 132), "street"),
}

# which subjects stand on which ground, and which hang in the sky
STANDING = {
    "sea": ("boat", "rock", "lighthouse"),
    "desert": ("rock", "figure", "tent", "cactus"),
    "meadow": ("tree", "house", "figure", "cow"),
    "snow": ("tree", "house", "figure", "tent"),
    "field": ("tree", "house", "figure", "windmill"),
    "city": ("tree", "figure", "tower"),
}
FLYING = ("sun", "balloon", "moon")

COLOURS: dict[str, Rgb] = {
    "red": (196, 44, 38),
    "white": (240, 240, 236),
    "yellow": (236, 190, 40),
    "blue": (40, 82, 170),
    "black": (34, 34, 40),
    "green": (42, 122, 62),
}
# subjects that come in these colours; the rest have their own
PAINTED = ("boat", "house", "figure", "tent", "balloon", "tower", "windmill", "lighthouse")

# pictures without a horizon
CLOSE_UPS = {
    "leaves": "a wall of green leaves",
    "bricks": "a brick wall",
    "sand": "sand seen from above",
    "water": "water seen from above",
    "clouds": "a sky full of clouds",
    "trunks": "tree trunks in a forest",
    "pebbles": "grey pebbles",
    "flowers": "flowers in the grass seen from above",
}

NO_HORIZON_SHARE = 0.1
TILTED_SHARE = 0.4
MAX_TILT_DEG = 10.0


@dataclass(frozen=True, kw_only=True)
class Subject:
    """Main subject: kind, colour, foot (or centre, when it hangs in the sky), height over frame."""

    kind: str
    colour: Rgb
    colour_word: str
    x: float
    distance: float  # of the foot below the horizon (negative: centre above it), share of height
    height: float


@dataclass(frozen=True, kw_only=True)
class Scene:
    """Plan of one picture; `horizon` and `tilt_deg` are None for a close-up without a horizon."""

    seed: int
    caption: str
    sky: str
    ground: str
    close_up: str | None = None
    horizon: float | None = None
    tilt_deg: float | None = None
    subject: Subject | None = None
    mountains: float = 0.0  # height over frame, 0 none
    tree_line: float = 0.0
    cloud_cover: float = 0.0
    roughness: float = 0.5
    haze: float = 0.0


def scene(seed: int) -> Scene:
    """The scene of a seed: the same one on every machine."""
    rng = np.random.default_rng([seed, 7])
    sky = str(rng.choice(list(SKIES)))
    if rng.random() < NO_HORIZON_SHARE:
        return _close_up(seed, sky, rng)
    ground = str(rng.choice(list(GROUNDS)))
    horizon = float(rng.uniform(0.12, 0.88))
    tilt = float(rng.uniform(-MAX_TILT_DEG, MAX_TILT_DEG)) if rng.random() < TILTED_SHARE else 0.0
    subject = _subject(ground, sky, horizon, tilt, rng) if rng.random() < 0.85 else None
    mountains = (
        float(rng.uniform(0.05, 0.3)) * min(1.0, horizon * 2) if rng.random() < 0.35 else 0.0
    )
    tree_line = float(rng.uniform(0.012, 0.05)) if _wooded(ground) and rng.random() < 0.4 else 0.0
    plan = Scene(
        seed=seed,
        caption="",
        sky=sky,
        ground=ground,
        horizon=horizon,
        tilt_deg=tilt,
        subject=subject,
        mountains=mountains,
        tree_line=tree_line,
        cloud_cover=float(rng.uniform(0.3, 1.0)) if rng.random() < 0.55 else 0.0,
        roughness=float(rng.uniform(0.0, 1.0)),
        haze=float(rng.uniform(0.2, 0.8)) if rng.random() < 0.25 else 0.0,
    )
    return Scene(**{**plan.__dict__, "caption": caption(plan, rng)})


def caption(plan: Scene, rng: np.random.Generator) -> str:
    """A sentence about the scene; details are named or left out at random, never wrong."""
    words = [_subject_words(plan, rng), SKIES[plan.sky].words if rng.random() < 0.9 else ""]
    details = []
    if plan.mountains and rng.random() < 0.8:
        details.append("mountains in the distance")
    if plan.tree_line and rng.random() < 0.7:
        details.append("trees along the horizon")
    if plan.cloud_cover and rng.random() < 0.7:
        details.append("clouds")
    if plan.haze and rng.random() < 0.7:
        details.append("haze")
    if plan.subject and rng.random() < 0.3:
        details.append(_side_words(plan.subject.x))
    if plan.horizon is not None and rng.random() < 0.3:
        details.append(_horizon_words(plan.horizon))
    sentence = " ".join(word for word in words if word)
    return ", ".join([sentence, *(detail for detail in details if detail)])


def _close_up(seed: int, sky: str, rng: np.random.Generator) -> Scene:
    kind = str(rng.choice(list(CLOSE_UPS)))
    roughness = float(rng.uniform(0.0, 1.0))
    words = CLOSE_UPS[kind]
    return Scene(
        seed=seed, caption=words, sky=sky, ground="meadow", close_up=kind, roughness=roughness
    )


def _wooded(ground: str) -> bool:
    return ground in ("meadow", "snow", "field")


def _subject(
    ground: str, sky: str, horizon: float, tilt: float, rng: np.random.Generator
) -> Subject | None:
    standing = rng.random() < 0.8
    x = float(rng.uniform(0.12, 0.88))
    line = horizon + math.tan(math.radians(tilt)) * (x - 0.5)  # square frame; small error elsewhere
    if standing and line < 0.93:
        depth = float(rng.uniform(0.08, 0.6)) * (0.97 - line)
        height = float(rng.uniform(0.11, 0.2)) + 0.55 * depth
        height = min(height, line + depth - 0.03)  # the top stays in the picture
        kind = str(rng.choice(STANDING[ground]))
        distance = depth
    elif line > 0.22:
        kind = "moon" if sky in ("night", "storm") else str(rng.choice(FLYING[:2]))
        height = float(rng.uniform(0.1, min(0.24, 0.8 * line)))
        distance = -float(rng.uniform(0.55 * height, line - 0.55 * height))
    else:
        return None
    word = str(rng.choice(list(COLOURS))) if kind in PAINTED else ""
    return Subject(
        kind=kind, colour=COLOURS.get(word, (0, 0, 0)), colour_word=word, x=x, distance=distance,
        height=height,
    )  # fmt: skip


def _subject_words(plan: Scene, rng: np.random.Generator) -> str:
    ground = GROUNDS[plan.ground].words
    if plan.ground == "sea":
        ground = f"{'calm' if plan.roughness < 0.5 else 'rough'} sea"
    place = "the snow" if plan.ground == "snow" else f"a {ground}"
    if plan.subject is None:
        return place if plan.ground != "snow" else "snow"
    thing = " ".join(word for word in (plan.subject.colour_word, plan.subject.kind) if word)
    article = "the" if plan.subject.kind in ("sun", "moon") else "a"
    where = "over" if plan.subject.distance < 0 else ("on" if plan.ground == "sea" else "in")
    return f"{article} {thing} {where} {place}"


def _side_words(x: float) -> str:
    if x < 0.38:
        return "on the left"
    return "on the right" if x > 0.62 else "in the middle"


def _horizon_words(horizon: float) -> str:
    if horizon < 0.38:
        return "high horizon"
    return "low horizon" if horizon > 0.62 else ""
