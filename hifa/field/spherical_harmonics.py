"""Real spherical harmonics with up to four bands (Sloan 2013, "Efficient Spherical Harmonic Evaluation")."""

import torch
from torch import Tensor


MAX_BANDS = 4


def spherical_harmonics(directions: Tensor, bands: int) -> Tensor:
    """Evaluate the spherical harmonics basis in unit directions.

    Args:
        directions: `(n, 3)` unit vectors.
        bands: Number of bands, 1 to `MAX_BANDS`. One band is a constant, without view dependence.

    Returns:
        `(n, bands ** 2)`.
    """
    x, y, z = directions.unbind(-1)
    basis = [torch.full_like(x, 0.28209479)]
    if bands > 1:
        basis += [-0.48860251 * y, 0.48860251 * z, -0.48860251 * x]
    if bands > 2:
        basis += [
            1.09254843 * x * y,
            -1.09254843 * y * z,
            0.31539157 * (3 * z * z - 1),
            -1.09254843 * x * z,
            0.54627422 * (x * x - y * y),
        ]
    if bands > 3:
        basis += [
            -0.59004359 * y * (3 * x * x - y * y),
            2.89061144 * x * y * z,
            -0.45704580 * y * (5 * z * z - 1),
            0.37317633 * z * (5 * z * z - 3),
            -0.45704580 * x * (5 * z * z - 1),
            1.44530572 * z * (x * x - y * y),
            -0.59004359 * x * (x * x - 3 * y * y),
        ]
    return torch.stack(basis, -1)
