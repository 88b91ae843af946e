"""Saliency and rewards: where people look, and how good a picture is. Import from the modules."""
