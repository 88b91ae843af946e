"""Socket types that nodes of several systems share."""

from comfy_api.latest import io

AnchorSocket = io.Custom("VEDUTA_ANCHOR")  # carries models.common.anchor.AnchorBatch
