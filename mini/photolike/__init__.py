"""Quasi-photographic pictures with and without a horizon, drawn from a seed."""

from .scene import SIDE_PX, Picture, draw

__all__ = ["SIDE_PX", "Picture", "draw"]
