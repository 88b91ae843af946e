"""Where a training is, on one line of the terminal."""

from collections.abc import Callable

from ..models.common.training import Step


def tell(stage: str) -> Callable[[Step], None]:
    """What to call after every step."""

    def on_step(now: Step) -> None:
        if now.loss is not None and now.rate is not None:
            left = (now.steps - now.step) / now.rate / 60
            numbers = "".join(f"  {name} {value:.3f}" for name, value in now.numbers.items())
            print(
                f"\r{stage}: step {now.step}/{now.steps}  loss {now.loss:.4f}{numbers}  "
                f"{now.rate:.2f} steps/s  {left:.0f} min left   ",
                end="" if now.step < now.steps else "\n",
                flush=True,
            )

    return on_step
