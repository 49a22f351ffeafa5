"""Radiance field g(theta), which a run optimizes: hash grid, small networks and background."""

from itertools import pairwise
from typing import Any

import torch
from diffusers import ConfigMixin, ModelMixin
from diffusers.configuration_utils import register_to_config
from torch import Tensor, nn

from .argument_ranges import check_field
from .hash_grid import HashGrid
from .spherical_harmonics import MAX_BANDS, spherical_harmonics


class RadianceField(ModelMixin, ConfigMixin):
    """NeRF in the cube [-bound, bound]^3 (HiFA appendix A.1).

    Density depends on the position. Color depends on the position and the view direction. Background color depends on
    the view direction only.

    Args:
        bound: Half the side of the cube, world units.
        levels, base_resolution, max_resolution, log2_hashmap_size: Hash grid, see `HashGrid`.
        hidden_dim: Width of the hidden layers.
        hidden_layers: Number of hidden layers of the density network. 0 is a linear map.
        view_bands: Bands of spherical harmonics of the view direction, 1 to 4. 1 means no view dependence.
        blob_density: Height of the initial Gaussian blob of density, before the activation.
        blob_radius: Standard deviation of the blob, world units. At this radius the blob has fallen by about 39 %.
        seed: Seed of the initial parameters, which depend only on the seed and the other arguments.

    Raises:
        ValueError: If an argument is out of range, see `argument_ranges`. The message names the argument.
    """

    config: Any  # The arguments of `__init__` are its attributes.

    @register_to_config
    def __init__(
        self,
        bound: float = 1.0,
        levels: int = 16,
        base_resolution: int = 16,
        max_resolution: int = 2048,
        log2_hashmap_size: int = 19,
        hidden_dim: int = 64,
        hidden_layers: int = 1,
        view_bands: int = 4,
        blob_density: float = 5.0,
        blob_radius: float = 0.3,
        seed: int = 0,
    ):
        super().__init__()
        check_field(dict(self.config))  # before any allocation: saved fields may come from untrusted sources
        self.bound = bound
        self.grid = HashGrid(levels, base_resolution, max_resolution, log2_hashmap_size)
        n_features = 15
        self.density_net = _mlp(self.grid.out_features, hidden_dim, hidden_layers, 1 + n_features)
        self.color_net = _mlp(n_features + view_bands**2, hidden_dim, 1, 3)
        self.background_net = _mlp(MAX_BANDS**2, 16, 1, 3)
        if self.grid.table.device.type != "meta":  # from_pretrained builds on the meta device and loads values later
            self._reset(torch.Generator().manual_seed(seed))

    def _reset(self, generator: torch.Generator) -> None:
        self.grid.reset(generator)
        for layer in (m for m in self.modules() if isinstance(m, nn.Linear)):
            nn.init.kaiming_uniform_(layer.weight, a=5**0.5, generator=generator)
            nn.init.zeros_(layer.bias)

    def encode(self, points: Tensor) -> tuple[Tensor, Tensor]:
        """Return density and features of points. Only this method reads the grid.

        Args:
            points: `(n, 3)` in world units, inside the cube.

        Returns:
            Density `(n,)` per world unit, non-negative, and features `(n, 15)` for `color_of`.
        """
        encoded = self.grid((points + self.bound) / (2 * self.bound))
        out = self.density_net(encoded)
        blob = self.config.blob_density * torch.exp(-0.5 * (points**2).sum(-1) / self.config.blob_radius**2)
        return _truncated_exp(out[:, 0] + blob - 1.0), out[:, 1:]

    def density(self, points: Tensor) -> Tensor:
        """Return the density `(n,)` per world unit at points `(n, 3)`; zero outside the cube."""
        inside = (points.abs() <= self.bound).all(-1)
        return self.encode(points)[0] * inside

    def color_of(self, features: Tensor, directions: Tensor) -> Tensor:
        """Return RGB `(n, 3)` in [0, 1] for features of `encode` and unit view directions `(n, 3)`."""
        basis = spherical_harmonics(directions, self.config.view_bands)
        return torch.sigmoid(self.color_net(torch.cat([features, basis], -1)))

    def color(self, points: Tensor, directions: Tensor) -> Tensor:
        """Return RGB `(n, 3)` in [0, 1] of points `(n, 3)` viewed along unit `directions` `(n, 3)`."""
        return self.color_of(self.encode(points)[1], directions)

    def background(self, directions: Tensor) -> Tensor:
        """Return the background RGB `(n, 3)` in [0, 1] for unit `directions` `(n, 3)`."""
        return torch.sigmoid(self.background_net(spherical_harmonics(directions, MAX_BANDS)))

    def parameter_groups(self, grid_lr: float, network_lr: float) -> list[dict]:
        """Return parameter groups for Adam, with separate learning rates for grid and networks (appendix A.1)."""
        networks = [p for name, p in self.named_parameters() if not name.startswith("grid.")]
        return [{"params": [self.grid.table], "lr": grid_lr}, {"params": networks, "lr": network_lr}]


class _TruncatedExp(torch.autograd.Function):
    """exp with a bounded gradient, as in instant-ngp: a density of e^12 must not destabilize the optimizer."""

    @staticmethod
    def forward(ctx, x: Tensor) -> Tensor:
        y = torch.exp(x.clamp(-15, 12))
        ctx.save_for_backward(y)
        return y

    @staticmethod
    def backward(ctx, grad: Tensor) -> Tensor:
        (y,) = ctx.saved_tensors
        return grad * y.clamp(max=1e3)


_truncated_exp = _TruncatedExp.apply


def _mlp(n_in: int, width: int, hidden: int, n_out: int) -> nn.Sequential:
    sizes = [n_in, *[width] * hidden, n_out]
    layers: list[nn.Module] = []
    for first, second in pairwise(sizes):
        # Skip PyTorch's initialization, which would draw from the global generator.
        layers += [nn.utils.skip_init(nn.Linear, first, second), nn.ReLU(inplace=True)]
    return nn.Sequential(*layers[:-1])
