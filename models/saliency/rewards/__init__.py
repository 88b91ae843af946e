"""Rewards: how good a picture is, as numbers with gradients. Import from the modules."""
