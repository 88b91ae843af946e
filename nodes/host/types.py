"""Socket types that nodes of several systems share."""

from comfy_api.latest import io

AnchorSocket = io.Custom("VEDUTA_ANCHOR")  # carries models.common.anchor.AnchorBatch
ImageAdapterSocket = io.Custom("VEDUTA_IMAGE_ADAPTER")  # carries host.image_prompt.ImageAdapter
InversionSocket = io.Custom("VEDUTA_INVERSION")  # carries models.inversion.trajectory.Inversion
