"""HiFAAsset: a finished radiance field, which can be rendered, exported and uploaded to the Hub without a prior."""

import json
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

import numpy as np
import PIL.Image
import torch
from diffusers.utils import SAFETENSORS_WEIGHTS_NAME
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor

from .cameras import Camera
from .field import RadianceField
from .rendering.image import Picture
from .rendering.viewing import Viewer
from .storage.checkpoint import NotFiniteError, check_finite, write_text_atomically
from .storage.layout import check_layout, module_layout, read_layout
from .storage.migration import SETTINGS, current_metadata, current_tensors, renamed


if TYPE_CHECKING:
    from .export.mesh import Mesh

# `export` and its mesh libraries take a second to import. They are imported where they are used, so that a run starts
# sooner.
ASSET_FILE = "asset.json"
WHITE = (1.0, 1.0, 1.0)


class AssetError(ValueError):
    """Error for an asset folder that cannot be read or written."""


@dataclass
class HiFAAsset:
    """A 3D asset: a radiance field and its metadata.

    Args:
        radiance_field: The field. No method of the asset changes the field.
        metadata: Metadata of the run: prompt, seed, prior, steps, seconds, config.
    """

    radiance_field: RadianceField
    metadata: dict[str, Any] = field(default_factory=dict)
    _viewer: Viewer | None = field(default=None, repr=False)

    @property
    def prompt(self) -> str:
        """Return the prompt; empty without one."""
        return self.metadata.get("prompt", "")

    def camera(self, azimuth_deg: float = 0.0, elevation_deg: float = 15.0) -> Camera:
        """Return a camera at the mean distance and field of view of the run's cameras.

        Args:
            azimuth_deg: Azimuth in degrees; 0 is the front.
            elevation_deg: Elevation in degrees; 0 is level.
        """
        config = self.metadata.get("config", {})
        radius, fov = config.get("camera_radius", (2.5, 2.5)), config.get("camera_fov_deg", (40.0, 40.0))
        return Camera(azimuth_deg, elevation_deg, sum(radius) / 2, sum(fov) / 2)

    def render(
        self, camera: Camera | None = None, size: int = 256, background: tuple[float, float, float] | None = WHITE
    ) -> Picture:
        """Render color, opacity, depth, disparity, normals and z-variance from a camera.

        Args:
            camera: Camera, see `camera`; by default in front of the object.
            size: Height and width in pixels.
            background: RGB in [0, 1]; `None` for the learned background.
        """
        flat = None if background is None else torch.tensor(background, device=self.radiance_field.device)
        return self._view().picture(camera or self.camera(), size, flat)

    def _view(self) -> Viewer:
        """Return the renderer of the field.

        The renderer is cached, because its creation evaluates the density on a grid.
        """
        if self._viewer is None:
            self._viewer = Viewer(self.radiance_field)
        return self._viewer

    def turntable(self, num_frames: int = 48, size: int = 256, elevation_deg: float = 15.0) -> Tensor:
        """Render a full turn around the object, starting at the front.

        Args:
            num_frames: Number of cameras.
            size: Height and width in pixels.
            elevation_deg: Elevation of the cameras in degrees.

        Returns:
            Colors `(num_frames, size, size, 3)` in [0, 1].
        """
        from .export.turntable import turntable_cameras

        base = self.camera()
        cameras = turntable_cameras(num_frames, elevation_deg=elevation_deg, radius=base.radius, fov_deg=base.fov_deg)
        return torch.stack([self.render(camera, size).color for camera in cameras])

    def mesh(self, resolution: int = 128, max_faces: int | None = 20_000) -> "Mesh":
        """Extract the surface of the field as a mesh in world axes.

        Args:
            resolution: Marching cubes cells per axis.
            max_faces: Maximum number of faces after simplification; `None` does not simplify.

        Raises:
            EmptyFieldError: If the field has no surface.
        """
        from .export.mesh import extract_mesh

        bound = self.radiance_field.bound
        return extract_mesh(self.density, self.color, bound, resolution=resolution, max_faces=max_faces)

    def export_mesh(
        self, path: str | Path, resolution: int = 128, max_faces: int | None = 20_000, texture_size: int = 1024
    ) -> Path:
        """Write a mesh file.

        Args:
            path: `.glb` or `.obj` with a baked texture, `.ply` with vertex colors, or `.zip` of the OBJ files.
            resolution: See `mesh`.
            max_faces: See `mesh`.
            texture_size: Height and width of the texture in pixels.

        Raises:
            ValueError: If the suffix is unknown.
            EmptyFieldError: If the field has no surface.
        """
        from .export.files import export_mesh

        bound, density, color = self.radiance_field.bound, self.density, self.color
        return export_mesh(
            path, density, color, bound, resolution=resolution, max_faces=max_faces, texture_size=texture_size
        )

    @torch.no_grad()
    def density(self, points: Tensor) -> Tensor:
        """Return the density `(n,)` per world unit at points `(n, 3)`, on the CPU, as `export.mesh` expects."""
        return self.radiance_field.density(points.to(self.radiance_field.device)).cpu()

    @torch.no_grad()
    def color(self, points: Tensor, directions: Tensor) -> Tensor:
        """Return RGB `(n, 3)` in [0, 1] at points `(n, 3)` along unit view directions `(n, 3)`, on the CPU."""
        device = self.radiance_field.device
        return self.radiance_field.color(points.to(device), directions.to(device)).cpu()

    def export_video(
        self,
        path: str | Path,
        num_frames: int = 48,
        size: int = 192,
        fps: int = 20,
        on_frame: Callable[[], object] | None = None,
    ) -> Path:
        """Write a turntable as MP4 (H.264, yuv420p), with color and normals side by side.

        Args:
            path: Output file.
            num_frames: Number of frames of the turn.
            size: Height and width of each half of a frame in pixels.
            fps: Frames per second.
            on_frame: Callback after each frame.

        Raises:
            OSError: If the file cannot be written or ffmpeg fails. An existing file is kept.
        """
        from .export.turntable import turntable_cameras
        from .export.video import normal_to_rgb, write_video

        base = self.camera()

        def frames() -> Iterator[np.ndarray]:
            for camera in turntable_cameras(num_frames, radius=base.radius, fov_deg=base.fov_deg):
                picture = self.render(camera, size)
                normals = normal_to_rgb(picture.normals.cpu().numpy(), picture.opacity.cpu().numpy())
                yield np.concatenate([picture.color.cpu().numpy(), normals], 1)
                if on_frame is not None:
                    on_frame()

        return write_video(Path(path), frames(), fps)  # encodes a frame while the next frame is rendered

    def depth_image(self, camera: Camera | None = None, size: int = 256) -> np.ndarray:
        """Render the depth as an image `(size, size, 3)` in [0, 1]; near is bright."""
        from .export.video import depth_to_rgb

        picture = self.render(camera, size)
        return depth_to_rgb(picture.depth.cpu().numpy(), picture.opacity.cpu().numpy())

    def save_pretrained(self, folder: str | Path) -> Path:
        """Save the field (`config.json`, safetensors), the metadata and a model card.

        Raises:
            AssetError: If the folder cannot be written, or if the field has NaN or infinite values.
        """
        from .export.hub import model_card

        folder = Path(folder)
        try:
            check_finite(self.radiance_field.state_dict())
            folder.mkdir(parents=True, exist_ok=True)
            self.radiance_field.save_pretrained(folder)
            write_text_atomically(folder / "README.md", model_card(self.metadata))
            # Written last: a folder with this file is complete.
            write_text_atomically(folder / ASSET_FILE, json.dumps(self.metadata, indent=2))
        except NotFiniteError as error:
            raise AssetError(f"The asset is not saved to {str(folder)!r}: {error} The run diverged.") from error
        except OSError as error:
            raise AssetError(
                f"Cannot write the asset to {str(folder)!r} ({error.strerror or error}). Choose another folder."
            ) from error
        return folder

    @classmethod
    def from_pretrained(cls, name_or_folder: str | Path, **kwargs: Any) -> "HiFAAsset":
        """Load an asset from a folder or a Hub ID.

        Args:
            name_or_folder: Folder of `save_pretrained`, or Hub ID.
            kwargs: Arguments of `huggingface_hub.snapshot_download`.

        Raises:
            AssetError: If the folder or repository does not exist, holds no asset, or is damaged.
        """
        folder = Path(name_or_folder)
        if not folder.is_dir():
            folder = _download(str(name_or_folder), **kwargs)
        if not (folder / ASSET_FILE).is_file():
            raise AssetError(
                f"{str(folder)!r} holds no HiFA asset (no {ASSET_FILE}). Give the folder of save_pretrained."
            )
        try:
            metadata = current_metadata(json.loads((folder / ASSET_FILE).read_text("utf-8")))
            return cls(_read_field(folder), metadata)
        except (OSError, ValueError, RuntimeError, TypeError, SafetensorError) as error:
            raise AssetError(f"The asset in {str(folder)!r} is damaged ({error}).") from error

    def push_to_hub(
        self,
        repo_id: str,
        *,
        private: bool = True,
        token: str | None = None,
        endpoint: str | None = None,
        license: str | None = None,
    ) -> str:
        """Upload the asset with a model card, turntable and GLB to a model repository.

        Args:
            repo_id: `owner/name` of the repository.
            private: Create a private repository.
            token: Access token of the Hub.
            endpoint: URL of another Hub.
            license: License of the asset for the model card, one of `export.hub.LICENSES`.

        Returns:
            URL of the repository.

        Raises:
            HubError: If the Hub rejects the upload.
        """
        from .export.hub import model_card, push_folder

        def write_files(folder: Path) -> None:
            self.save_pretrained(folder)
            self.export(folder)
            (folder / "README.md").write_text(model_card(self.metadata, repo_id, license, endpoint), "utf-8")

        return push_folder(repo_id, write_files, private=private, token=token, endpoint=endpoint)

    def export(
        self,
        folder: str | Path,
        formats: Sequence[str] = ("turntable", "stills", "glb"),
        *,
        show_bar: bool = False,
        **options: int,
    ) -> None:
        """Write several files to a folder. If a file fails, the export continues with the next file.

        Args:
            folder: Output folder. The folder is created if it does not exist.
            formats: `"turntable"` writes `turntable.mp4`, and `"stills"` writes `front.png`, `side.png`, `back.png`
                and `depth.png`. `"glb"`, `"obj"`, `"zip"` and `"ply"` write a mesh with this suffix.
            show_bar: Whether to show a progress bar with the remaining time.
            options: Fields of `export.asset_files.ExportOptions`, such as `max_faces=10_000`.

        Raises:
            ValueError: If a format is unknown.
            ExportError: If a file cannot be written. All remaining files are written.
        """
        from .export.asset_files import ExportOptions, export_files

        export_files(self, Path(folder), formats, ExportOptions(**options), show_bar)

    def export_stills(self, folder: Path, size: int = 256) -> None:
        """Write `front.png`, `side.png`, `back.png` and `depth.png`."""
        from .export.video import depth_to_rgb

        for name, azimuth in (("front", 0), ("side", 90), ("back", 180)):
            picture = self.render(self.camera(azimuth), size)
            save_image(folder / f"{name}.png", picture.color.cpu().numpy())
            if name == "front":  # depth of the same view
                depth = depth_to_rgb(picture.depth.cpu().numpy(), picture.opacity.cpu().numpy())
        save_image(folder / "depth.png", depth)


def _read_field(folder: Path) -> RadianceField:
    """Load the field of an asset.

    Raises:
        ValueError: If the tensors in the file are not exactly those that the config requires, or are not finite.
    """
    path, config = folder / SAFETENSORS_WEIGHTS_NAME, cast(dict[str, Any], RadianceField.load_config(folder))
    config = renamed(config, SETTINGS)
    with torch.device("meta"):
        field = cast(RadianceField, RadianceField.from_config(config))
    check_layout(read_layout(path), module_layout(field))
    tensors = current_tensors(load_file(path))
    check_finite(tensors)
    field = cast(RadianceField, RadianceField.from_config(config)).eval()
    field.load_state_dict(tensors)
    return field


def _download(repo_id: str, **kwargs: Any) -> Path:
    """Download an asset from the Hub and return its folder in the local cache."""
    from huggingface_hub import snapshot_download

    try:
        return Path(snapshot_download(repo_id, allow_patterns=["*.json", "*.safetensors"], **kwargs))
    except (OSError, ValueError) as error:  # base classes of the Hub's errors
        reason = " ".join(str(error).split())
        raise AssetError(f"{repo_id!r} is not a local folder and cannot be loaded from the Hub ({reason}).") from error


def save_image(path: Path, image: np.ndarray) -> None:
    """Write an image `(H, W, 3)` in [0, 1] to a file."""
    PIL.Image.fromarray((image.clip(0, 1) * 255).round().astype(np.uint8)).save(path)
