"""Adapters to ComfyUI, each used by two systems or more."""
