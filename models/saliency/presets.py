"""Ready-made settings: ours for few-step models, and the published methods as far as they are known.

Source:  SGOOL, Wang et al. 2024, arXiv:2410.10257 (a reconstruction: step rule, rate, mask and weights
         are not published, DOODL's stand in); DOODL, Wallace et al. 2023, arXiv:2303.13703, as released;
         ReNO, Eyring et al. 2024, arXiv:2406.04312, as released.
"""

from dataclasses import dataclass

from .objective import CROPS, MASKED, WHOLE_PICTURE
from .steps import Momentum, Nesterov, Rule, WhiteStep


@dataclass(frozen=True, kw_only=True)
class Preset:
    """What an optimisation does unless the user says otherwise.

    Args:
        rule: how the noise moves.
        iterations: steps of it.
        use: of saliency.
        strength: of the salient part.
        crops: of each picture.
        refresh: iterations between two maps.
        inertia: share of the map before that is kept.
        patience: iterations without a gain after which it ends; 0 never.
    """

    rule: Rule
    iterations: int
    use: str = WHOLE_PICTURE
    strength: float = 1.0
    crops: int = 4
    refresh: int = 1
    inertia: float = 0.0
    patience: int = 0


DEFAULT, SGOOL, DOODL, RENO = (
    "few steps (white noise kept)", "SGOOL (reconstruction)", "DOODL", "ReNO"
)  # fmt: skip
PRESETS = {
    DEFAULT: Preset(
        rule=WhiteStep(), iterations=30, use=CROPS, strength=0.5, refresh=5, inertia=0.8, patience=8
    ),
    SGOOL: Preset(rule=Momentum(), iterations=50, use=MASKED),
    DOODL: Preset(rule=Momentum(), iterations=50, use=CROPS, strength=0.0, crops=16),
    RENO: Preset(rule=Nesterov(), iterations=50),
}
