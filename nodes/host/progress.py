"""The progress bar of a node, and its answer to the cancel button."""

from collections.abc import Callable

import comfy.model_management
import comfy.utils


def progress_steps(total: int) -> Callable[[], None]:
    """Open the node's progress bar and give the function that moves it on.

    Args:
        total: how many steps there will be.

    Returns:
        A function to call after each step. It moves the bar by one and raises ComfyUI's
        InterruptProcessingException once the user has cancelled the run.
    """
    bar = comfy.utils.ProgressBar(total)

    def advance() -> None:
        comfy.model_management.throw_exception_if_processing_interrupted()
        bar.update(1)

    return advance
