"""Volume networks that make the views of SyncDreamer consistent (Liu et al. 2023, arXiv 2309.03453, section 3.3).

In every step, the noisy latents of all views are encoded and unprojected into one cubic volume of the object. A 3D
network turns this volume into a spatial volume. For each view, features are sampled from the spatial volume in the
view frustum. A second 3D network turns the frustum into features at every resolution of the UNet, which
`depth_attention.py` uses.
"""

from itertools import pairwise
from typing import Any

import torch
from diffusers import ModelMixin
from diffusers.configuration_utils import ConfigMixin, register_to_config
from torch import Tensor, nn

from .cameras import ViewRing
from .projection import frustum_points, project, sample_images, sample_volumes, volume_points


class ViewBlock(nn.Module):
    """Residual block on the noisy latent of a view, conditioned on time and view embeddings.

    Args:
        channels: Channels of input and output.
        time_dim, view_dim: Sizes of the time and view embeddings.
        groups: Groups of the group norms.
    """

    def __init__(self, channels: int, time_dim: int, view_dim: int, groups: int):
        super().__init__()
        self.time_proj = nn.Linear(time_dim, channels)
        self.view_proj = nn.Linear(view_dim, channels)
        self.norm1 = nn.GroupNorm(groups, channels)
        self.conv1 = nn.Conv2d(channels, channels, 3, padding=1)
        self.norm2 = nn.GroupNorm(groups, channels)
        self.conv2 = nn.Conv2d(channels, channels, 3, padding=1)
        self.act = nn.SiLU()

    def forward(self, x: Tensor, t_embed: Tensor, v_embed: Tensor) -> Tensor:
        """Apply the block: `(B, C, H, W)`, `(B, time_dim)`, `(B, view_dim)` -> `(B, C, H, W)`."""
        hidden = x + self.time_proj(t_embed)[:, :, None, None] + self.view_proj(v_embed)[:, :, None, None]
        hidden = self.conv1(self.act(self.norm1(hidden)))
        return x + self.conv2(self.act(self.norm2(hidden)))


class ViewEncoder(nn.Module):
    """Encoder for the noisy latent of one view, at constant resolution: `latent_channels` -> `channels`."""

    def __init__(self, latent_channels: int, channels: int, time_dim: int, view_dim: int, groups: int):
        super().__init__()
        self.conv_in = nn.Conv2d(latent_channels, channels, 3, padding=1)
        self.blocks = nn.ModuleList(ViewBlock(channels, time_dim, view_dim, groups) for _ in range(3))
        self.norm_out = nn.GroupNorm(groups, channels)
        self.conv_out = nn.Conv2d(channels, channels, 3, padding=1)
        self.act = nn.SiLU()

    def forward(self, x: Tensor, t_embed: Tensor, v_embed: Tensor) -> Tensor:
        """Encode latents: `(B, latent_channels, H, W)`, `(B, time_dim)`, `(B, view_dim)` -> `(B, channels, H, W)`."""
        x = self.conv_in(x)
        for block in self.blocks:
            x = block(x, t_embed, v_embed)
        return self.conv_out(self.act(self.norm_out(x)))


class VolumeBlock(nn.Module):
    """3D block that adds embeddings, then normalizes and convolves.

    Args:
        in_channels, out_channels: Channels of input and output.
        time_dim: Size of the time embedding.
        view_dim: Size of the view embedding; 0 for a volume without a view.
        groups: Groups of the group norm.
        resize: `"down"` halves and `"up"` doubles every side; `"same"` keeps the size.
    """

    def __init__(
        self, in_channels: int, out_channels: int, time_dim: int, view_dim: int, groups: int, resize: str = "same"
    ):
        super().__init__()
        self.time_proj = nn.Linear(time_dim, in_channels)
        self.view_proj = nn.Linear(view_dim, in_channels) if view_dim else None
        self.norm = nn.GroupNorm(groups, in_channels)
        self.act = nn.SiLU()
        if resize == "up":
            self.conv = nn.ConvTranspose3d(in_channels, out_channels, 3, stride=2, padding=1, output_padding=1)
        else:
            self.conv = nn.Conv3d(in_channels, out_channels, 3, stride=2 if resize == "down" else 1, padding=1)

    def forward(self, x: Tensor, t_embed: Tensor, v_embed: Tensor | None) -> Tensor:
        """Apply the block: `(B, C, D, H, W)`, `(B, time_dim)`, `(B, view_dim)` or None -> `(B, C', D', H', W')`."""
        shift = self.time_proj(t_embed)
        if self.view_proj is not None:
            shift = shift + self.view_proj(v_embed)
        return self.conv(self.act(self.norm(x + shift[:, :, None, None, None])))


class VolumeUNet(nn.Module):
    """U-shaped 3D network. Each level halves every side, and skip connections are added.

    Args:
        in_channels: Channels of the input.
        dims: Channels of the levels, from fine to coarse.
        layers: Blocks of a level after its strided block. The finest level has `layers - 1` blocks and no strided
            block.
        time_dim, view_dim, groups: See `VolumeBlock`.
    """

    def __init__(
        self, in_channels: int, dims: tuple[int, ...], layers: int, time_dim: int, view_dim: int, groups: int
    ):
        super().__init__()

        def block(before: int, after: int, resize: str = "same") -> VolumeBlock:
            return VolumeBlock(before, after, time_dim, view_dim, groups, resize)

        self.conv_in = nn.Conv3d(in_channels, dims[0], 3, padding=1)
        self.down = nn.ModuleList([nn.ModuleList(block(dims[0], dims[0]) for _ in range(layers - 1))])
        self.up = nn.ModuleList()
        for fine, coarse in pairwise(dims):
            blocks = [block(fine, coarse, "down"), *(block(coarse, coarse) for _ in range(layers))]
            self.down.append(nn.ModuleList(blocks))
            self.up.append(block(coarse, fine, "up"))

    def forward(self, x: Tensor, t_embed: Tensor, v_embed: Tensor | None = None) -> list[Tensor]:
        """Map `(B, in_channels, D, H, W)` to levels from fine to coarse, `(B, dims[i], D/2^i, H/2^i, W/2^i)`."""
        levels, x = [], self.conv_in(x)
        for blocks in self.down:
            for block in blocks:  # pyright: ignore[reportGeneralTypeIssues]
                x = block(x, t_embed, v_embed)
            levels.append(x)
        for level in reversed(range(len(self.up))):
            levels[level] = levels[level] + self.up[level](levels[level + 1], t_embed, v_embed)
        return levels


class MultiViewVolume(ModelMixin, ConfigMixin):
    """Volume networks: from the noisy latents of all views to features along the rays of each view.

    The defaults are SyncDreamer's.

    Args:
        num_views, elevation_deg, radius, focal_length: Cameras, see `ViewRing`. The number of views determines the
            shape of the weights. The weights are trained for the order of the views.
        latent_channels, latent_size: Channels and side of the latent of a view. The side is a multiple of
            2^(levels - 1).
        encoder_dim: Channels that each view contributes to the volume.
        time_dim, view_dim: Sizes of the embeddings.
        volume_size: Voxels per side of the spatial volume.
        half_extent: Half side of the spatial volume in world units.
        volume_dims: Channels of the levels, from fine to coarse; one level for each resolution of the UNet.
        frustum_depth: Number of depth planes in a frustum, a multiple of 2^(levels - 1).
        frustum_half_depth: The planes lie within radius +- this value, in world units; sqrt(3) / 2 covers all corners.
        norm_num_groups: Groups of the group norms.

    Raises:
        ValueError: If a size is not a multiple of 2^(levels - 1).
    """

    config: Any  # The arguments of `__init__` are its attributes.

    @register_to_config
    def __init__(
        self,
        num_views: int = 16,
        elevation_deg: float = 30.0,
        radius: float = 1.5,
        focal_length: float = 35 / 32,
        latent_channels: int = 4,
        latent_size: int = 32,
        encoder_dim: int = 16,
        time_dim: int = 256,
        view_dim: int = 4,
        volume_size: int = 32,
        half_extent: float = 0.5,
        volume_dims: tuple[int, ...] = (64, 128, 256, 512),
        frustum_depth: int = 48,
        frustum_half_depth: float = 0.86603,
        norm_num_groups: int = 8,
    ):
        super().__init__()
        halvings = 2 ** (len(volume_dims) - 1)
        for name, size in (
            ("latent_size", latent_size),
            ("volume_size", volume_size),
            ("frustum_depth", frustum_depth),
        ):
            if size % halvings:
                raise ValueError(f"{name} must be a multiple of {halvings} for {len(volume_dims)} levels, got {size}.")
        self.ring = ViewRing(num_views, elevation_deg, radius, focal_length)
        self.encoder = ViewEncoder(latent_channels, encoder_dim, time_dim, view_dim, norm_num_groups)
        self.spatial_net = VolumeUNet(encoder_dim * num_views, volume_dims, 2, time_dim, 0, norm_num_groups)
        self.frustum_net = VolumeUNet(volume_dims[0], volume_dims, 1, time_dim, view_dim, norm_num_groups)

    def spatial_volume(self, latents: Tensor, t_embed: Tensor, v_embed: Tensor) -> Tensor:
        """Compute one volume of the object from all views.

        Args:
            latents: `(B, num_views, latent_channels, latent_size, latent_size)`, noisy.
            t_embed: `(B, time_dim)`.
            v_embed: `(B, num_views, view_dim)`.

        Returns:
            `(B, volume_dims[0], volume_size, volume_size, volume_size)`, axes z, y, x.
        """
        batch, views, device = *latents.shape[:2], latents.device
        size = self.config.volume_size
        features = self.encoder(latents.flatten(0, 1), t_embed.repeat_interleave(views, 0), v_embed.flatten(0, 1))
        points = volume_points(size, self.config.half_extent, device).reshape(-1, 3)
        intrinsics = self.ring.intrinsics(latents.shape[-1]).to(device)
        pixels, _ = project(points, self.ring.world_to_camera().to(device), intrinsics)
        unprojected = sample_images(features, pixels.repeat(batch, 1, 1))  # (B * num_views, encoder_dim, size^3)
        return self.spatial_net(unprojected.reshape(batch, -1, size, size, size), t_embed)[0]

    def frustum_depths(self) -> Tensor:
        """Return the depth planes `(frustum_depth,)` of every frustum, along the optical axis in world units."""
        near, far = (self.config.radius + side * self.config.frustum_half_depth for side in (-1, 1))
        return torch.linspace(near, far, self.config.frustum_depth)

    def frustums(self, volume: Tensor, t_embed: Tensor, v_embed: Tensor, views: Tensor) -> list[Tensor]:
        """Compute features along the rays of some views.

        Memory grows with the number of views: pass a few views at a time.

        Args:
            volume: `(B, volume_dims[0], V, V, V)` from `spatial_volume`.
            t_embed: See `spatial_volume`.
            v_embed: See `spatial_volume`.
            views: `(B, n)` int64 indices of views.

        Returns:
            Levels from fine to coarse, `(B * n, volume_dims[i], frustum_depth / 2^i, h / 2^i, h / 2^i)`.
        """
        batch, count, device = *views.shape, volume.device
        views = views.to(device)
        poses = self.ring.world_to_camera().to(device)[views.flatten()]
        size = self.config.latent_size
        points = frustum_points(poses, self.ring.intrinsics(size).to(device), size, self.frustum_depths().to(device))
        # Sampled view by view, because copies of the volume would need more memory than the frustums.
        samples = [
            sample_volumes(volume[i // count, None], points[i, None], self.config.half_extent)
            for i in range(batch * count)
        ]
        v_embed = v_embed[torch.arange(batch, device=device)[:, None], views].flatten(0, 1)
        return self.frustum_net(torch.cat(samples), t_embed.repeat_interleave(count, 0), v_embed)
