"""Socket types that nodes of several systems share."""

from comfy_api.latest import io

AnchorSocket = io.Custom("VEDUTA_ANCHOR")  # carries models.common.anchor.AnchorBatch
ImageAdapterSocket = io.Custom("VEDUTA_IMAGE_ADAPTER")  # carries host.image_prompt.ImageAdapter
InversionSocket = io.Custom("VEDUTA_INVERSION")  # carries models.inversion.trajectory.Inversion
StyleSetSocket = io.Custom("VEDUTA_STYLE_SET")  # carries models.styleforge.style_set.StyleSet
StyleSocket = io.Custom("VEDUTA_STYLE")  # carries models.styleforge.style.Style
SaliencySocket = io.Custom("VEDUTA_SALIENCY")  # carries nodes.saliency.networks.Saliency
RewardSocket = io.Custom("VEDUTA_REWARD")  # carries nodes.saliency.networks.RewardChain
