"""Gradients of the latent and the image term, and z-variance by weight of the distortion loss.

    python -m benchmarks.ablations.strength

Two loss weights in `variants` are based on these measurements. The last line printed is one JSON object:

    ratio         gradient norm of the latent term divided by the gradient norm of the image term, both at the image.
                  The object has one ratio for each quarter of HiFA's runs (`quarters`) and one for whole runs (`all`)
    z_variance    z-variance x 1000 of HiFA (`HiFA`), and of runs with the distortion loss instead of the z-variance
                  loss, by weight of the distortion loss
"""

import argparse
import json
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any

import numpy as np
import torch

from hifa import HiFAAsset, HiFAConfig, HiFAPipeline
from hifa.optimization import distillation

from ..text_to_3d import AZIMUTHS, ELEVATION, SIZE
from .variants import STEPS, hifa_config, replace


PROMPTS = ("a red mushroom", "a blue car")  # not used by the ablations
DISTORTIONS = (0.1, 0.3, 1.0, 3.0, 10.0)


@contextmanager
def watched() -> Iterator[list[tuple[float, float]]]:
    """Record the gradient norms of the latent and the image term at the image, for every step in the context."""
    loss, norms = distillation.sds_plus_loss, []

    def watch(z, z_hat, x, x_hat, **options):
        terms = [loss(z, z_hat, x, x_hat, **options | {other: 0.0}) for other in ("lambda_rgb", "lambda_latent")]
        norms.append(tuple(torch.autograd.grad(term, x, retain_graph=True)[0].norm().item() for term in terms))
        return loss(z, z_hat, x, x_hat, **options)

    distillation.sds_plus_loss = watch
    try:
        yield norms
    finally:
        distillation.sds_plus_loss = loss


def finished(pipe: HiFAPipeline, prompt: str, config: HiFAConfig) -> HiFAAsset:
    run = pipe.start(prompt, seed=0, config=config)
    for _ in pipe.advance(run):
        pass
    return run.asset()


def z_variance(asset: HiFAAsset) -> float:
    """Return 1000 times the mean z-variance over the opaque pixels of eight views, or NaN without opaque pixels."""
    views = [asset.render(asset.camera(azimuth, ELEVATION), SIZE) for azimuth in AZIMUTHS]
    return 1000 * float(torch.cat([view.z_variance[view.opacity > 0.5] for view in views]).mean())


def ratios(norms: list[tuple[float, float]]) -> dict[str, Any]:
    """Return the ratios of the mean norms, for each quarter of the runs and for whole runs.

    All runs have the same number of steps.
    """
    by_run = np.array(norms).reshape(len(PROMPTS), 4, -1, 2).mean((0, 2))
    return {"quarters": [round(a / b, 1) for a, b in by_run], "all": round(float(np.divide(*by_run.mean(0))), 1)}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--steps", type=int, default=STEPS, help="a multiple of 4")
    arguments = parser.parse_args()
    pipe, base = HiFAPipeline.from_pretrained(), hifa_config(arguments.steps)
    pipe.set_progress_bar_config(disable=True)
    make = partial(finished, pipe)
    with watched() as norms:
        spread = {"HiFA": np.mean([z_variance(make(prompt, base)) for prompt in PROMPTS])}
    for weight in DISTORTIONS:
        config = replace(base, lambda_zvar=0.0, lambda_distortion=weight)
        spread[str(weight)] = np.mean([z_variance(make(prompt, config)) for prompt in PROMPTS])
    rounded = {name: round(float(value), 2) for name, value in spread.items()}
    print(json.dumps({"ratio": ratios(norms), "z_variance": rounded}))


if __name__ == "__main__":
    main()
