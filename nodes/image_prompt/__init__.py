"""Nodes of the image prompt (IP-Adapter)."""

from comfy_api.latest import io

from .nodes import ApplyImageAdapter, LoadImageAdapter

NODES: list[type[io.ComfyNode]] = [LoadImageAdapter, ApplyImageAdapter]
