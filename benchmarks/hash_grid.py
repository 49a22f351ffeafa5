"""Speed of the compiled hash grid on the CPU, compared with plain torch (`embedding_bag`).

    python -m benchmarks.hash_grid

The benchmark times forward and backward passes with 131,072 points, after a warm-up. The backward pass computes the
gradient of the table. The two implementations alternate, so that a busy machine slows both alike. The last line
printed is one JSON object with one entry per grid size:

    compiled_ms, torch_ms     median time of a forward and a backward pass together
    compiled_passes_ms, torch_passes_ms
                              median times `[forward, backward]`
    ratio                     torch_ms / compiled_ms
    largest_difference        largest absolute difference between the implementations divided by the largest absolute
                              value; the maximum over encodings and gradients
"""

import argparse
import json
import statistics
import time
from collections.abc import Callable

import torch
from torch import Tensor

from hifa.field.hash_grid import HashGrid, encode_torch


GRIDS = {
    "fast": {"levels": 8, "base_resolution": 8, "max_resolution": 64, "log2_hashmap_size": 15},
    "large": {"levels": 8, "base_resolution": 16, "max_resolution": 512, "log2_hashmap_size": 19},
}


def forward_backward(encode: Callable[[], Tensor], table: Tensor, upstream: Tensor) -> tuple[float, float]:
    """Return the seconds of a forward pass and of a backward pass. `table.grad` holds the gradient afterwards."""
    table.grad = None
    start = time.perf_counter()
    encoded = encode()
    middle = time.perf_counter()
    encoded.backward(upstream)
    return middle - start, time.perf_counter() - middle


def relative_difference(a: Tensor, b: Tensor) -> float:
    return float((a - b).abs().max() / b.abs().max())


def compare(n_points: int, repeats: int, **grid_settings: int) -> dict:
    """Time both implementations with the same points and the same table. Times are in milliseconds."""
    generator = torch.Generator().manual_seed(0)
    grid = HashGrid(**grid_settings)
    grid.reset(generator)
    points = torch.rand(n_points, 3, generator=generator)
    upstream = torch.randn(n_points, grid.out_features, generator=generator)
    resolutions = grid.resolutions.tolist()
    paths = {
        "compiled": lambda: grid(points),
        "torch": lambda: encode_torch(points, grid.table, resolutions, grid.entries),
    }
    results = {}
    for name, path in paths.items():  # warm up, and store the results for the comparison
        forward_backward(path, grid.table, upstream)
        results[name] = path().detach(), grid.table.grad
    seconds: dict[str, list] = {name: [] for name in paths}
    for _ in range(repeats):
        for name, path in paths.items():
            seconds[name].append(forward_backward(path, grid.table, upstream))
    figures = {}
    for name, times in seconds.items():
        figures[f"{name}_ms"] = round(statistics.median(map(sum, times)) * 1000, 2)
        figures[f"{name}_passes_ms"] = [round(statistics.median(part) * 1000, 2) for part in zip(*times, strict=True)]
    differences = [relative_difference(a, b) for a, b in zip(*results.values(), strict=True)]
    return {
        **grid_settings,
        **figures,
        "ratio": round(figures["torch_ms"] / figures["compiled_ms"], 1),
        "largest_difference": float(f"{max(differences):.1e}"),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--points", type=int, default=131_072)
    parser.add_argument("--repeats", type=int, default=10, help="number of timed passes per implementation")
    arguments = parser.parse_args()
    rows = {name: compare(arguments.points, arguments.repeats, **settings) for name, settings in GRIDS.items()}
    print(json.dumps({"points": arguments.points, "threads": torch.get_num_threads(), **rows}))


if __name__ == "__main__":
    main()
