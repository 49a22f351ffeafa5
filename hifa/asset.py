"""HiFAAsset: a finished radiance field. It renders, exports and goes to the Hub; it needs no prior."""

import json
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import PIL.Image
import torch
from diffusers.utils import SAFETENSORS_WEIGHTS_NAME
from safetensors import SafetensorError
from torch import Tensor

from .cameras import Camera, orbit
from .field import RadianceField
from .layout import check_layout, module_layout, read_layout
from .rendering.image import Picture
from .rendering.viewing import Viewer
from .state import NotFiniteError, check_finite, write_text_atomically


if TYPE_CHECKING:
    from .export.mesh import Mesh

# `export` and the mesh libraries behind it take a second to import. They are loaded where they are needed, so that a
# run shows its first preview sooner.

FACTS = "asset.json"
WHITE = (1.0, 1.0, 1.0)


class AssetError(ValueError):
    """An asset folder that cannot be read or written."""


@dataclass
class HiFAAsset:
    """A 3D asset.

    Args:
        radiance_field: The field; not changed by anything here.
        facts: What made it: prompt, seed, prior, steps, seconds, config.
    """

    radiance_field: RadianceField
    facts: dict[str, Any] = field(default_factory=dict)
    _viewer: Viewer | None = field(default=None, repr=False)

    @property
    def prompt(self) -> str:
        return self.facts.get("prompt", "")

    def camera(self, azimuth_deg: float = 0.0, elevation_deg: float = 15.0) -> Camera:
        """A camera at the distance and field of view of the run."""
        config = self.facts.get("config", {})
        radius, fov = config.get("camera_radius", (2.5, 2.5)), config.get("camera_fov_deg", (40.0, 40.0))
        return Camera(azimuth_deg, elevation_deg, sum(radius) / 2, sum(fov) / 2)

    def render(
        self, camera: Camera | None = None, size: int = 256, background: tuple[float, float, float] | None = WHITE
    ) -> Picture:
        """Colour, opacity, depth, disparity, normals and z-variance from a camera, the front by default.

        Args:
            camera: See `camera`.
            size: Height and width in pixels.
            background: RGB in [0, 1]; `None` for the learned background.
        """
        flat = None if background is None else torch.tensor(background, device=self.radiance_field.device)
        return self._view().picture(camera or self.camera(), size, flat)

    def _view(self) -> Viewer:
        """What renders the field, made once: it evaluates the density on a grid."""
        if self._viewer is None:
            self._viewer = Viewer(self.radiance_field)
        return self._viewer

    def turntable(self, num_frames: int = 48, size: int = 256, elevation_deg: float = 15.0) -> Tensor:
        """Colour of a full turn from the front: `(num_frames, size, size, 3)` in [0, 1]."""
        base = self.camera()
        cameras = orbit(num_frames, elevation_deg=elevation_deg, radius=base.radius, fov_deg=base.fov_deg)
        return torch.stack([self.render(camera, size).colour for camera in cameras])

    def mesh(self, resolution: int = 128, max_faces: int | None = 20_000) -> "Mesh":
        """Surface of the field, in world axes.

        Args:
            resolution: Cells per axis of marching cubes.
            max_faces: Simplify to at most so many faces.

        Raises:
            EmptyFieldError: If there is no surface.
        """
        from .export.mesh import extract_mesh

        bound = self.radiance_field.bound
        return extract_mesh(self.density, self.colour, bound, resolution=resolution, max_faces=max_faces)

    def export_mesh(
        self, path: str | Path, resolution: int = 128, max_faces: int | None = 20_000, texture_size: int = 1024
    ) -> Path:
        """Write a mesh: `.glb` or `.obj` with a baked texture, `.ply` with vertex colours, `.zip` of the OBJ files.

        Raises:
            ValueError: For another suffix.
            EmptyFieldError: If there is no surface.
        """
        from .export.files import export_mesh

        bound, density, colour = self.radiance_field.bound, self.density, self.colour
        return export_mesh(
            path, density, colour, bound, resolution=resolution, max_faces=max_faces, texture_size=texture_size
        )

    @torch.no_grad()
    def density(self, points: Tensor) -> Tensor:
        """Density `(n,)` per world unit at points `(n, 3)`, on the CPU, as `export.mesh` asks for it."""
        return self.radiance_field.density(points.to(self.radiance_field.device)).cpu()

    @torch.no_grad()
    def colour(self, points: Tensor, directions: Tensor) -> Tensor:
        """RGB `(n, 3)` in [0, 1] at points `(n, 3)` seen along unit directions `(n, 3)`, on the CPU."""
        device = self.radiance_field.device
        return self.radiance_field.colour(points.to(device), directions.to(device)).cpu()

    def export_video(
        self,
        path: str | Path,
        num_frames: int = 48,
        size: int = 192,
        fps: int = 20,
        on_frame: Callable[[], object] | None = None,
    ) -> Path:
        """Write a turntable as MP4 (H.264, yuv420p): colour beside normals.

        Args:
            on_frame: Called after each frame.

        Raises:
            OSError: If the file cannot be written or ffmpeg fails; what was there before stays.
        """
        from .export.video import normal_to_rgb, write_video

        base = self.camera()

        def frames() -> Iterator[np.ndarray]:
            for camera in orbit(num_frames, radius=base.radius, fov_deg=base.fov_deg):
                picture = self.render(camera, size)
                normals = normal_to_rgb(picture.normals.cpu().numpy(), picture.opacity.cpu().numpy())
                yield np.concatenate([picture.colour.cpu().numpy(), normals], 1)
                if on_frame is not None:
                    on_frame()

        return write_video(Path(path), frames(), fps)  # encoded while the next frame is rendered

    def depth_image(self, camera: Camera | None = None, size: int = 256) -> np.ndarray:
        """Depth as a picture `(size, size, 3)` in [0, 1]; near is bright."""
        from .export.video import depth_to_rgb

        picture = self.render(camera, size)
        return depth_to_rgb(picture.depth.cpu().numpy(), picture.opacity.cpu().numpy())

    def save_pretrained(self, folder: str | Path) -> Path:
        """Write the field (`config.json`, safetensors), the facts and a card.

        Raises:
            AssetError: If the folder cannot be written, or if the field is not finite.
        """
        from .export.hub import model_card

        folder = Path(folder)
        try:
            check_finite(self.radiance_field.state_dict())
            folder.mkdir(parents=True, exist_ok=True)
            self.radiance_field.save_pretrained(folder)
            write_text_atomically(folder / "README.md", model_card(self.facts))
            # At last: a folder with it has all the others.
            write_text_atomically(folder / FACTS, json.dumps(self.facts, indent=2))
        except NotFiniteError as error:
            raise AssetError(f"The asset is not saved to {str(folder)!r}: {error} Its run diverged.") from error
        except OSError as error:
            raise AssetError(
                f"Cannot write the asset to {str(folder)!r} ({error.strerror or error}). Choose another folder."
            ) from error
        return folder

    @classmethod
    def from_pretrained(cls, name_or_folder: str | Path, **kwargs: Any) -> "HiFAAsset":
        """Load an asset from a folder or a hub id.

        Raises:
            AssetError: If the folder holds none, or there is neither a folder nor a repository of that name.
        """
        folder = Path(name_or_folder)
        if not folder.is_dir():
            folder = _download(str(name_or_folder), **kwargs)
        if not (folder / FACTS).is_file():
            raise AssetError(f"{str(folder)!r} holds no HiFA asset (no {FACTS}). Give the folder of save_pretrained.")
        try:
            facts = json.loads((folder / FACTS).read_text())
            return cls(_read_field(folder), facts)
        except (OSError, ValueError, RuntimeError, TypeError, SafetensorError) as error:
            raise AssetError(f"The asset in {str(folder)!r} is damaged ({error}).") from error

    def push_to_hub(
        self,
        repo_id: str,
        *,
        private: bool = True,
        token: str | None = None,
        endpoint: str | None = None,
        licence: str | None = None,
    ) -> str:
        """Upload the asset with its card, turntable and GLB to a model repository; returns its address.

        Args:
            licence: Of the asset, one of `export.hub.LICENCES`, for its card.

        Raises:
            HubError: If the Hub refuses.
        """
        from .export.hub import model_card, push_folder

        def write_files(folder: Path) -> None:
            self.write_files(folder)
            (folder / "README.md").write_text(model_card(self.facts, repo_id, licence, endpoint))

        return push_folder(repo_id, write_files, private=private, token=token, endpoint=endpoint)

    def write_files(self, folder: Path) -> None:
        """Write everything a person may want: the asset itself, turntable, stills, depth, GLB.

        Raises:
            AssetError: If the asset itself cannot be written.
            ExportError: If another file cannot be written; all others are there.
        """
        from .export.each import export_each

        self.save_pretrained(folder)
        export_each(
            {
                "turntable.mp4": lambda: self.export_video(folder / "turntable.mp4"),
                "stills": lambda: self.export_stills(folder),
                "mesh.glb": lambda: self.export_mesh(folder / "mesh.glb"),
            }
        )

    def export_stills(self, folder: Path, size: int = 256) -> None:
        """Write `front.png`, `side.png`, `back.png` and `depth.png`."""
        from .export.video import depth_to_rgb

        for name, azimuth in (("front", 0), ("side", 90), ("back", 180)):
            picture = self.render(self.camera(azimuth), size)
            save_image(folder / f"{name}.png", picture.colour.cpu().numpy())
            if name == "front":  # one view, two pictures
                depth = depth_to_rgb(picture.depth.cpu().numpy(), picture.opacity.cpu().numpy())
        save_image(folder / "depth.png", depth)


def _read_field(folder: Path) -> RadianceField:
    """The field of an asset, if its file has exactly the tensors that its settings call for."""
    with torch.device("meta"):
        field = RadianceField.from_config(RadianceField.load_config(folder))
    check_layout(read_layout(folder / SAFETENSORS_WEIGHTS_NAME), module_layout(field))
    field = RadianceField.from_pretrained(folder, use_safetensors=True)
    check_finite(field.state_dict())
    return field


def _download(repo_id: str, **kwargs: Any) -> Path:
    """The folder that an asset on the Hub is kept in here."""
    from huggingface_hub import snapshot_download

    try:
        return Path(snapshot_download(repo_id, allow_patterns=["*.json", "*.safetensors"], **kwargs))
    except (OSError, ValueError) as error:  # the Hub's own errors are of these kinds
        reason = " ".join(str(error).split())
        raise AssetError(f"{repo_id!r} is no folder here and cannot be had from the Hub ({reason}).") from error


def save_image(path: Path, image: np.ndarray) -> None:
    """Write `(H, W, 3)` in [0, 1] as a picture file."""
    PIL.Image.fromarray((image.clip(0, 1) * 255).round().astype(np.uint8)).save(path)
