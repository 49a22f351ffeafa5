"""Small convolutional U-Net (Ronneberger et al. 2015) that estimates surfaces in pictures at full resolution."""

from collections.abc import Sequence
from itertools import pairwise
from typing import Any

import torch
from diffusers import ConfigMixin, ModelMixin
from diffusers.configuration_utils import register_to_config
from torch import Tensor, nn
from torch.nn import functional as F


class ResidualBlock(nn.Module):
    """Two 3x3 convolutions with batch normalization and a skip connection."""

    def __init__(self, width: int):
        super().__init__()
        self.first, self.second = convolution(width, width), convolution(width, width)

    def forward(self, x: Tensor) -> Tensor:
        """Apply the block: `(B, width, H, W)` -> `(B, width, H, W)`."""
        return F.relu(x + self.second(F.relu(self.first(x))))


def convolution(inputs: int, outputs: int, stride: int = 1) -> nn.Sequential:
    """Build a 3x3 convolution with batch normalization.

    Unlike normalization per image, batch normalization preserves the brightness of a picture. Shading is a cue for
    normals.
    """
    return nn.Sequential(nn.Conv2d(inputs, outputs, 3, stride, padding=1, bias=False), nn.BatchNorm2d(outputs))


class SurfaceUNet(ModelMixin, ConfigMixin):
    """U-Net that predicts five values per pixel from a picture and its timestep.

    Args:
        sample_size: Height and width of the training pictures, divisible by 2^(len(widths) - 1).
        widths: Number of channels at each level, from the full to the lowest resolution.
    """

    config: Any  # The arguments of `__init__` are its attributes.

    @register_to_config
    def __init__(self, sample_size: int = 64, widths: Sequence[int] = (32, 64, 128, 256)):
        super().__init__()
        self.stem = convolution(4, widths[0])
        self.down = nn.ModuleList(convolution(a, b, stride=2) for a, b in pairwise(widths))
        self.encode = nn.ModuleList(ResidualBlock(width) for width in widths)
        self.merge = nn.ModuleList(convolution(a + b, a) for a, b in pairwise(widths))
        self.decode = nn.ModuleList(ResidualBlock(width) for width in widths[:-1])
        self.head = nn.Conv2d(widths[0], 5, 1)

    def forward(self, pictures: Tensor, timesteps: Tensor) -> Tensor:
        """Predict the surface in pictures.

        Args:
            pictures: `(B, 3, H, W)` in [0, 1].
            timesteps: `(B,)` in [0, 1000), see `SurfacePrior.estimate`.

        Returns:
            `(B, 5, H, W)`: normal before normalization (three channels), concentration before its activation, and
            disparity.
        """
        time = (timesteps.to(pictures.dtype) / 1000)[:, None, None, None].expand(-1, 1, *pictures.shape[-2:])
        x = self.encode[0](F.relu(self.stem(torch.cat([2 * pictures - 1, time], 1))))
        skips = []
        for down, block in zip(self.down, self.encode[1:], strict=True):
            skips.append(x)
            x = block(F.relu(down(x)))
        for skip, merge, block in reversed(list(zip(skips, self.merge, self.decode, strict=True))):
            x = torch.cat([F.interpolate(x, scale_factor=2.0, mode="nearest"), skip], 1)
            x = block(F.relu(merge(x)))
        return self.head(x)
