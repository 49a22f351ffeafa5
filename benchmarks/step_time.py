"""Time of an optimization step divided by the time of its guidance alone, for a run with default settings.

    python -m benchmarks.step_time

After each step of a run, the benchmark repeats the work of the prior in that step, on a fixed image. This bare
guidance consists of the same UNet calls with the same inputs, the encoder with its backward pass to the image, and the
decoder. Steps and bare guidance alternate, so that a busy machine slows both alike. The last line printed is one JSON
object:

    ratio                     step_seconds / bare_seconds
    step_ms, bare_ms          median time of a step and of its bare guidance
    step_seconds, bare_seconds
                              total time of all steps and of all bare guidance
    unet_seconds, encoder_seconds, decoder_seconds
                              parts of bare_seconds. The part of the encoder includes the backward pass
    ratio_by_quarter          the ratio in each quarter of the run. Later in a run, renders are larger and have less
                              haze
    unet_calls                number of UNet calls in all steps
"""

import argparse
import json
import statistics
import time
from itertools import pairwise
from pathlib import Path

import torch
from torch import Tensor, nn

from hifa import TOYBOX, HiFAPipeline
from hifa.optimization.distillation import make_distiller
from hifa.optimization.step import optimization_step
from hifa.priors.latent_diffusion import LatentDiffusionPrior


PROMPT = "a red mushroom"
PARTS = ("unet", "encoder", "decoder")


class CallRecorder:
    """Records the arguments of every call of a module while `active` is true, so that the calls can be repeated."""

    def __init__(self, module: nn.Module):
        self.calls: list[tuple[tuple, dict]] = []
        self.active = False
        module.register_forward_pre_hook(self._keep, with_kwargs=True)

    def _keep(self, module: nn.Module, positional: tuple, named: dict) -> None:
        if self.active:
            self.calls.append((positional, named))


def bare_guidance(prior: LatentDiffusionPrior, calls: list[tuple[tuple, dict]], image: Tensor) -> list[float]:
    """Return the seconds of the UNet calls, of the encoder forward and backward, and of the decoder.

    Args:
        prior: Prior to time.
        calls: Arguments of the UNet calls to repeat.
        image: Leaf tensor `(1, 3, H, W)` in [0, 1] that requires a gradient.
    """
    clock = [time.perf_counter()]
    with torch.no_grad():
        for positional, named in calls:
            prior.unet(*positional, **named)
    clock.append(time.perf_counter())
    latent = prior.encode(image)
    latent.backward(torch.ones_like(latent))
    clock.append(time.perf_counter())
    prior.decode(latent.detach())
    clock.append(time.perf_counter())
    image.grad = None
    return [after - before for before, after in pairwise(clock)]


def measure(pipe: HiFAPipeline, steps: int | None) -> tuple[list[float], list[list[float]], int]:
    """Run to the end, and time every step.

    Args:
        pipe: Pipeline with the prior.
        steps: Number of steps of the run. `None` uses the number of steps of the preset.

    Returns:
        The seconds of each step, the seconds of each part of its bare guidance, and the number of UNet calls.
    """
    prior = LatentDiffusionPrior(pipe.vae, pipe.unet, pipe.scheduler)
    image = torch.rand(1, 3, pipe.image_size, pipe.image_size, generator=torch.Generator().manual_seed(0))
    image.requires_grad_()
    recorder = CallRecorder(prior.unet)
    step_seconds, bare_seconds, unet_calls = [], [], 0
    for _ in pipe.advance(pipe.start(PROMPT, seed=1), steps=3):  # warm-up: numba compiles, torch selects kernels
        pass
    run = pipe.start(PROMPT, seed=0, num_inference_steps=steps)
    surfaces, distiller = pipe.surface_models(run.config), make_distiller(run, prior)
    while not run.finished:
        recorder.calls, recorder.active = [], True
        start = time.perf_counter()
        optimization_step(run, distiller, surfaces)
        step_seconds.append(time.perf_counter() - start)
        recorder.active = False
        bare_seconds.append(bare_guidance(prior, recorder.calls, image))
        unet_calls += len(recorder.calls)
        if run.step % 50 == 0:
            print(f"{run.step} steps, ratio so far {sum(step_seconds) / sum(map(sum, bare_seconds)):.2f}", flush=True)
    return step_seconds, bare_seconds, unet_calls


def summary(step_seconds: list[float], bare_seconds: list[list[float]]) -> dict:
    """Return the results described at the top of this file, except `unet_calls`."""
    bare, count = [sum(parts) for parts in bare_seconds], len(step_seconds)
    edges = [round(count * quarter / 4) for quarter in range(5)]
    quarters = [slice(*pair) for pair in pairwise(edges) if pair[0] < pair[1]]
    parts = zip(PARTS, zip(*bare_seconds, strict=True), strict=True)
    return {
        "ratio": round(sum(step_seconds) / sum(bare), 3),
        "step_ms": round(statistics.median(step_seconds) * 1000, 1),
        "bare_ms": round(statistics.median(bare) * 1000, 1),
        "step_seconds": round(sum(step_seconds), 2),
        "bare_seconds": round(sum(bare), 2),
        **{f"{name}_seconds": round(sum(values), 2) for name, values in parts},
        "ratio_by_quarter": [round(sum(step_seconds[part]) / sum(bare[part]), 2) for part in quarters],
        "steps": count,
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--prior", type=Path, default=TOYBOX, help="folder of a Stable Diffusion pipeline")
    parser.add_argument("--steps", type=int, help="steps of the run, for a trial; default: the preset's")
    arguments = parser.parse_args()
    step_seconds, bare_seconds, unet_calls = measure(HiFAPipeline.from_pretrained(arguments.prior), arguments.steps)
    print(json.dumps({**summary(step_seconds, bare_seconds), "unet_calls": unet_calls}))


if __name__ == "__main__":
    main()
