"""Several concepts to add to a picture or to remove from it, each where it matters.

Source:  Brack et al. 2024 (LEDITS++), arXiv:2311.16711, Eq. 8 to 11: a term of guidance per concept,
         gated by steps and masked by the places where it is strong.
Differs: the mask of places comes from the guidance alone (their M2), smoothed; no attention maps.
         A mask that the user draws multiplies it.
Symbols: D_c prediction of x0 with the concept, D_u without; w weight, negative ones remove.
"""

from dataclasses import dataclass

from torch import Tensor

from .masks import strong_places


@dataclass(frozen=True, kw_only=True)
class ConceptRule:
    """How one concept acts.

    Args:
        weight: w; below 0 the concept is removed.
        threshold: share of the places that it leaves alone, the weakest first; 0 acts everywhere.
        start_percent: share of the steps before which it waits.
        end_percent: share of the steps after which it rests.
    """

    weight: float = 5.0
    threshold: float = 0.9
    start_percent: float = 0.1
    end_percent: float = 1.0

    def __post_init__(self) -> None:
        if not self.start_percent < self.end_percent:
            raise ValueError(
                f"start_percent is {self.start_percent:g}, end_percent is {self.end_percent:g}, so the "
                "concept would never act; set start_percent below end_percent"
            )

    def acts_at(self, progress: float) -> bool:
        """Whether it acts when a share of the steps is done."""
        return self.weight != 0 and self.start_percent <= progress < self.end_percent


def concept_term(
    with_concept: Tensor, without: Tensor, rule: ConceptRule, mask: Tensor | None = None
) -> Tensor:
    """What a concept adds to the prediction.

    Args:
        with_concept: D_c (b c ...).
        without: D_u, the same shape.
        rule: its weight and its threshold.
        mask: (b 1 ...) or (1 1 ...), where the concept may act; None is everywhere.

    Returns:
        (b c ...): w times the difference, zero where it is weak.
    """
    difference = with_concept - without
    term = rule.weight * difference
    if rule.threshold > 0:
        term = term * strong_places(difference, rule.threshold)
    return term if mask is None else term * mask.to(term)
