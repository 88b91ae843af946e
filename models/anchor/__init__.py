"""Anchor adapter: makes a denoiser obey a composition anchor. Import from the modules."""
