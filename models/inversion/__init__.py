"""Tight inversion: pictures into noise that rebuilds them. Import from the modules."""
