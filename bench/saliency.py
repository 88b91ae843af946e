"""Are gradients true and cheap, and do they beat picking?  python dev.py bench saliency [--part PART]

gradients   recomputed against the full graph, and against finite differences for every family
cost        memory of 50 steps against 10; seconds against sampling, and against DOODL's scheme
gain        unseen prompts on the miniature, the same seconds for each: none, best of n, DOODL, SGOOL,
            default; held-out points by a second image-text model (`mini/train.py --stages image_text
            --seed 1`), and gains inside and outside the salient region

The rows of earlier runs stay in bench/results/saliency.json until they are measured again. What `gain`
has measured is kept under --run: a run that was stopped goes on.
"""

import argparse
from pathlib import Path

from ._miniature import Miniature
from ._rows import Row, report
from ._saliency_cost import cost_rows, gradient_rows
from ._saliency_gain import Sizes, gain_rows

RUN = Path(__file__).resolve().parents[1] / "build" / "bench_saliency"
PARTS = ("gradients", "cost", "gain")


def main() -> None:
    parser = argparse.ArgumentParser(description="Measure latent optimisation.")
    parser.add_argument("--part", choices=PARTS, action="append", help="only this; may be repeated")
    parser.add_argument("--run", type=Path, default=RUN, help="folder for what has been measured")
    parser.add_argument("--prompts", type=int, default=100)
    parser.add_argument("--seeds", type=int, default=2)
    parser.add_argument("--seconds", type=float, default=8.0, help="of each method and picture")
    parser.add_argument("--steps", type=int, default=8, help="of the sampler")
    parser.add_argument("--side", type=int, default=16, help="of the latent, px")
    parser.add_argument(
        "--second", default="image_text_seed1", help="held-out model in mini/weights"
    )
    options = parser.parse_args()
    bench, rows = Miniature(), list[Row]()
    for part in options.part or PARTS:
        if part == "gradients":
            rows += gradient_rows(bench)
        elif part == "cost":
            rows += cost_rows(bench)
        else:
            sizes = Sizes(
                prompts=options.prompts, seeds=options.seeds, seconds=options.seconds,
                steps=options.steps, side=options.side, run=options.run, second=options.second,
            )  # fmt: skip
            rows += gain_rows(bench, sizes)
    report("saliency", rows, keep_others=True)


if __name__ == "__main__":
    main()
