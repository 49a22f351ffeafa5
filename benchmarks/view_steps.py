"""Effect of more denoising steps and more seeds on the embedded multi-view model. The default is one step.

    python -m benchmarks.view_steps

For each photo and each of several seeds, the model generates a sheet of sixteen views. The photos show new scenes, as
in `benchmarks.toybox_multiview`. The last line printed is one JSON object with one entry per number of steps. An entry
holds means over the scenes, in dB except `seconds`:

    one_seed    mean PSNR of the sheets of all seeds
    chosen      PSNR of the sheet that `hifa.multiview.best_of_seeds` ranks first, as in the app
    best        highest PSNR of all seeds. Selecting this sheet requires the true views
    spread      PSNR between the sheets of two seeds. A higher value means more similar sheets. The value is `null` if
                all sheets are identical
    seconds     time per sheet, which depends on the machine
"""

import argparse
import itertools
import json
import time

import numpy as np
import torch

from hifa.multiview import SyncDreamerPipeline, best_of_seeds

from .toybox_multiview import Trial, psnr, trained_trials


def measure(pipe: SyncDreamerPipeline, trials: list[Trial], steps: int, seeds: int) -> dict:
    """Return the results for one number of steps."""
    ones, chosen, best, between, clock = [], [], [], [], time.perf_counter()
    for trial in trials:
        found = best_of_seeds(pipe, trial.photo, trial.elevation_deg, range(seeds), num_inference_steps=steps)
        sheets = [candidate.images.numpy() for candidate in found]
        values = [psnr(sheet, trial.truth) for sheet in sheets]
        ones.append(float(np.mean(values)))
        chosen.append(values[0])
        best.append(max(values))
        between += [psnr(*pair) for pair in itertools.combinations(sheets, 2) if not np.array_equal(*pair)]
        print(f"{steps} steps: {', '.join(f'{value:.2f}' for value in values)} dB", flush=True)
    seconds = (time.perf_counter() - clock) / len(trials) / seeds
    figures = {"one_seed": ones, "chosen": chosen, "best": best, "spread": between, "seconds": [seconds]}
    return {name: round(float(np.mean(values)), 2) if values else None for name, values in figures.items()}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--scenes", type=int, default=16)
    parser.add_argument("--seeds", type=int, default=4, help="at least 2")
    parser.add_argument("--steps", type=int, nargs="+", default=[1, 5, 20], help="numbers of denoising steps")
    arguments = parser.parse_args()
    pipe = SyncDreamerPipeline.from_pretrained(dtype=torch.float32)
    pipe.set_progress_bar_config(disable=True)
    trials = trained_trials(arguments.scenes)
    result = {"scenes": arguments.scenes, "seeds": arguments.seeds}
    result |= {str(steps): measure(pipe, trials, steps, arguments.seeds) for steps in arguments.steps}
    print(json.dumps(result))


if __name__ == "__main__":
    main()
