"""Every inversion method by its name, with the papers' settings."""

from .ddim import Ddim
from .edict import Edict
from .edit_friendly import EditFriendly
from .fireflow import FireFlow
from .fixed_point import FixedPoint
from .ledits import Ledits
from .method import Method
from .midpoint import Midpoint
from .o_belm import OBelm
from .rf_inversion import RfInversion
from .stored_residual import StoredResidual
from .uni_inv import UniInv

DEFAULT = UniInv.name
METHODS: dict[str, Method] = {
    method.name: method
    for method in (
        UniInv(),
        FixedPoint(),
        Midpoint(),
        FireFlow(),
        Ddim(),
        StoredResidual(),
        OBelm(),
        Edict(),
        EditFriendly(),
        Ledits(),
        RfInversion(),
    )
}


def method_of(name: str) -> Method:
    """The method of a name.

    Raises:
        ValueError: there is none.
    """
    if name not in METHODS:
        raise ValueError(
            f"inversion was made with the method '{name}', known are {', '.join(METHODS)}; use a newer "
            "version of the pack, or invert again"
        )
    return METHODS[name]
