"""Sizes of hash grids, and points at which they are compared."""

import torch


# levels, base, finest, log2_hashmap_size: dense only, both, the embedded default, hashed only, hardly any entries.
SIZES = [(1, 4, 4, 12), (4, 4, 32, 10), (8, 8, 128, 15), (3, 64, 256, 6), (2, 3, 50, 4)]


def make_points(n: int = 300) -> torch.Tensor:
    """Return random points, all corners and face middles, points on cell borders, and points outside."""
    corners = torch.cartesian_prod(*[torch.tensor([0.0, 0.5, 1.0])] * 3)
    outside = torch.tensor([[-0.3, 0.2, 0.7], [1.7, 0.5, 0.5], [-1.0, 2.0, 9.0], [1.0 + 1e-6, -1e-6, 0.3]])
    random = torch.rand(n, 3, generator=torch.Generator().manual_seed(1))
    return torch.cat([random, (random[:50] * 32).floor() / 32, corners, outside])
