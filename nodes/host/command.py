"""What the training commands have in common: the base that they are told to train for."""

import importlib
from pathlib import Path

import comfy.sd
from comfy.model_patcher import ModelPatcher


def load_base(
    checkpoint: Path | None, miniature: bool
) -> tuple[ModelPatcher, comfy.sd.CLIP, comfy.sd.VAE]:
    """MODEL, CLIP and VAE of a checkpoint's file, or of the miniature.

    Raises:
        ValueError: none or both are asked for, or the checkpoint lacks a part.
        FileNotFoundError: there is no such file.
    """
    if miniature == (checkpoint is not None):
        raise ValueError(
            "the base is missing or given twice; give --checkpoint FILE or --miniature"
        )
    if checkpoint is None:
        # by name: a command is above the systems, which do not know each other
        mini = importlib.import_module(f"{__package__}".rpartition(".")[0] + ".mini")
        return mini.load_model(), mini.load_clip(), mini.load_vae()
    if not checkpoint.is_file():
        raise FileNotFoundError(f"there is no file {checkpoint}; give a checkpoint's path")
    model, clip, vae, _ = comfy.sd.load_checkpoint_guess_config(str(checkpoint))
    if model is None or clip is None or vae is None:
        raise ValueError(
            f"{checkpoint.name} lacks its model, its CLIP or its VAE; give a checkpoint with all three"
        )
    return model, clip, vae
