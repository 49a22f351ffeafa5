"""Complete state of a text-to-3D run. Checkpoint, pause, resume and download all use `HiFARun.save` and `load`."""

from dataclasses import dataclass, field
from pathlib import Path
from typing import cast

import torch
from safetensors import SafetensorError
from torch import Tensor

from ..asset import HiFAAsset
from ..cameras import VIEWS, Camera
from ..config import HiFAConfig
from ..field import RadianceField
from ..multiview.given_views import GivenViews
from ..priors.prompt_embeddings import PromptEmbeddings
from ..priors.vsd import VariationalState, saved_layout
from ..rendering.density_grid import DensityGrid
from ..rendering.rays import RaySampling
from ..storage.checkpoint import (
    NotFiniteError,
    check_finite,
    load_optimizer_tensors,
    optimizer_tensors,
    read,
    with_prefix,
    without_prefix,
    write_atomically,
)
from ..storage.layout import (
    MOMENTS,
    Layout,
    Spec,
    check_layout,
    layout_of,
    module_layout,
    optimizer_layout,
    prefixed,
    read_layout,
    unprefixed,
)
from ..storage.run_folder import FILE, RunError, is_saved_in, read_metadata
from .adan import Adan
from .initialization import PREVIEW_SIZE, front_camera, initial_field, initial_grid, preview, ray_sampling


FORMAT = "hifa-run-2"


@dataclass
class HiFARun:
    """Complete state of an optimization at one moment.

    `HiFAPipeline.start` creates a run, and `HiFAPipeline.advance` optimizes the run.

    Args:
        prompt, negative_prompt: As passed by the user. A run without a prompt has no distillation.
        config: Settings, which are constant during a run.
        seed: Seed of the initial field. If the user passed a seed and no generator, also the seed of
            `generator`.
        prior: Name of the prior, as metadata. `None` in a reconstruction without a prior, including a run whose
            prompt the prior cannot encode.
        embeddings: Embeddings of the negative prompt, the prompt, and the prompt with each view suffix. Saved with the
            run, so that a loaded run needs no text encoder. `None` in a reconstruction without a prior.
        radiance_field: Field g(theta).
        optimizer: Adam or Adan for the parameters of the field.
        grid: Density grid, or `None` if the settings have none.
        generator: Generator for all random numbers. Always on the CPU, also for a run on a GPU.
        views: Given views for the guidance of section 5.4, or `None`.
        note: Information for the user about the guidance of the run; may be empty.
        variational: State of the variational score (`distillation="vsd"`); `None` for other methods.
        step: Number of finished steps.
        losses: Loss terms by name, one dictionary for each finished step.
        seconds: Time spent in `advance`, summed over all sessions.
        skipped: Number of attempts at steps that were rejected because the loss or a gradient was not finite.
    """

    prompt: str | None
    negative_prompt: str
    config: HiFAConfig
    seed: int
    prior: str | None
    embeddings: PromptEmbeddings | None
    radiance_field: RadianceField
    optimizer: torch.optim.Optimizer
    grid: DensityGrid | None
    generator: torch.Generator
    views: GivenViews | None = None
    note: str = ""
    variational: VariationalState | None = None
    step: int = 0
    losses: list[dict[str, float]] = field(default_factory=list)
    seconds: float = 0.0
    skipped: int = 0

    @property
    def finished(self) -> bool:
        """Return whether all steps are finished."""
        return self.step >= self.config.num_inference_steps

    @property
    def device(self) -> torch.device:
        """Return the device of the field."""
        return self.radiance_field.device

    @property
    def sampling(self) -> RaySampling:
        """Return the ray sampling of the run."""
        return ray_sampling(self.config, self.grid)

    def preview(self, camera: Camera | None = None, size: int = PREVIEW_SIZE) -> Tensor:
        """Render the current field: `(size, size, 3)` RGB in [0, 1] on light gray."""
        return preview(self.radiance_field, camera or self.front_camera(), self.sampling, size)

    def front_camera(self, azimuth_deg: float = 0.0) -> Camera:
        """Return the camera of the previews at an azimuth in degrees; 0 is the front."""
        return front_camera(self.config, azimuth_deg)

    def asset(self) -> HiFAAsset:
        """Return a copy of the current field as an asset. Further steps of the run do not change the asset."""
        copy = cast(RadianceField, RadianceField.from_config(self.radiance_field.config))
        copy.load_state_dict(self.radiance_field.state_dict())
        metadata = {
            "prompt": self.prompt or "",
            "negative_prompt": self.negative_prompt,
            "seed": self.seed,
            "prior": self.prior,
            "steps": self.step,
            "seconds": round(self.seconds, 1),
            "config": self.config.to_dict(),
        }
        if self.views is not None:
            metadata |= {"given_views": len(self.views), "note": self.note}
        return HiFAAsset(copy.to(self.radiance_field.device), metadata)  # pyright: ignore[reportArgumentType]

    def save(self, folder: str | Path) -> Path:
        """Save the run as one file in `folder`.

        The write is atomic: after a crash, the folder still has the previous file.

        Returns:
            The folder.

        Raises:
            RunError: If the folder cannot be written, or if a tensor of the run is not finite. The previous file is
                kept, so that a diverged run does not replace a usable checkpoint.
        """
        folder = Path(folder)
        tensors = {
            **with_prefix("field", self.radiance_field.state_dict()),
            **with_prefix("optimizer", optimizer_tensors(self.optimizer)),
            "generator": self.generator.get_state(),
        }
        if self.embeddings is not None:
            tensors["prompt_embeds"] = self.embeddings.tokens
            if self.embeddings.pooled is not None:
                tensors["pooled_prompt_embeds"] = self.embeddings.pooled
        if self.views is not None:
            tensors |= with_prefix("views", self.views.tensors())
        if self.grid is not None:
            tensors["grid"] = self.grid.values
        if self.variational is not None:
            tensors |= with_prefix("variational", self.variational.tensors())
            tensors |= with_prefix("variational_optimizer", optimizer_tensors(self.variational.optimizer))
        metadata = {
            "format": FORMAT,
            "prompt": self.prompt,
            "negative_prompt": self.negative_prompt,
            "config": self.config.to_dict(),
            "seed": self.seed,
            "prior": self.prior,
            "note": self.note,
            "step": self.step,
            "losses": self.losses,
            "seconds": self.seconds,
            "skipped": self.skipped,
        }
        try:
            folder.mkdir(parents=True, exist_ok=True)
            write_atomically(folder / FILE, tensors, metadata)
        except NotFiniteError as error:
            raise RunError(f"The run is not saved to {str(folder)!r}, because it diverged. {error}") from error
        except OSError as error:
            raise RunError(
                f"Cannot write the run to {str(folder)!r} ({error.strerror or error}). Choose another folder."
            ) from error
        return folder

    @classmethod
    def load(cls, folder: str | Path, device: str | torch.device = "cpu") -> "HiFARun":
        """Load a saved run.

        On the same machine, the result of a resumed run is bit-for-bit that of an uninterrupted run.

        Args:
            folder: Folder of the saved run.
            device: Device of the run.

        Raises:
            RunError: If the folder holds no run, or if the file is damaged or of another kind.
        """
        path = Path(folder) / FILE
        if not is_saved_in(folder):
            raise RunError(f"{str(folder)!r} holds no HiFA run (no {FILE}). Use the folder that a run was saved to.")
        try:
            metadata = read_metadata(folder)
        except Exception as error:  # The classes of safetensors and json differ. All of them mean a damaged file.
            raise RunError(
                f"{str(path)!r} is damaged or not a HiFA run ({type(error).__name__}). Start a new run."
            ) from error
        if metadata.get("format") != FORMAT:
            raise RunError(f"{str(path)!r} has format {metadata.get('format')!r}, but this version reads {FORMAT!r}.")
        try:
            # The check reads only the header, so that an unrelated large file is not loaded into memory.
            check_layout(found := read_layout(path), run_layout(metadata, found))
            tensors, metadata = read(path)
            check_finite(tensors)
            return cls._restore(tensors, metadata, torch.device(device))
        except (KeyError, RuntimeError, TypeError, ValueError, OSError, SafetensorError) as error:
            raise RunError(f"{str(path)!r} has missing or wrong parts ({error}). Start a new run.") from error

    @classmethod
    def _restore(cls, tensors: dict[str, Tensor], metadata: dict, device: torch.device) -> "HiFARun":
        config = HiFAConfig(**metadata["config"])
        tokens = tensors.get("prompt_embeds")
        if (tokens is None) != (metadata["prior"] is None):  # A prompt that the prior cannot encode has no embeddings.
            raise KeyError("prompt_embeds")
        embeddings = None if tokens is None else PromptEmbeddings(tokens, tensors.get("pooled_prompt_embeds"))
        views = without_prefix("views", tensors)
        run = cls.begin(
            metadata["prompt"],
            config,
            negative_prompt=metadata["negative_prompt"],
            seed=metadata["seed"],
            prior=metadata["prior"],
            embeddings=None if embeddings is None else embeddings.to(device),
            generator=torch.Generator(),
            device=device,
            views=GivenViews.from_tensors(views) if views else None,
            note=metadata.get("note", ""),
        )
        run.generator.set_state(tensors["generator"])
        run.radiance_field.load_state_dict(without_prefix("field", tensors))
        load_optimizer_tensors(run.optimizer, without_prefix("optimizer", tensors))
        if run.grid is not None:
            run.grid.values.copy_(tensors["grid"])
        learned = without_prefix("variational", tensors)
        if bool(learned) != (embeddings is not None and config.distillation == "vsd"):
            raise KeyError("variational")
        if learned:
            # Copied, because the memory layout of tensors from a file would change the rounding of sums.
            learned = {name: value.to(device, copy=True) for name, value in learned.items()}
            run.variational = VariationalState(learned, config.lora_lr)
            load_optimizer_tensors(run.variational.optimizer, without_prefix("variational_optimizer", tensors))
        run.step, run.losses, run.seconds = metadata["step"], metadata["losses"], metadata["seconds"]
        run.skipped = metadata.get("skipped", 0)  # Files of earlier versions have no count.
        return run

    @classmethod
    def begin(
        cls,
        prompt: str | None,
        config: HiFAConfig,
        *,
        generator: torch.Generator,
        seed: int = 0,
        device: torch.device | str = "cpu",
        negative_prompt: str = "",
        prior: str | None = None,
        embeddings: PromptEmbeddings | None = None,
        views: GivenViews | None = None,
        note: str = "",
    ) -> "HiFARun":
        """Create a run at step 0 with a new field in float32.

        Args:
            prompt: See `HiFARun`.
            config: See `HiFARun`.
            generator: See `HiFARun`.
            seed: See `HiFARun`.
            device: Device of the run.
            negative_prompt: See `HiFARun`.
            prior: See `HiFARun`.
            embeddings: See `HiFARun`.
            views: See `HiFARun`.
            note: See `HiFARun`.
        """
        radiance_field = initial_field(config, seed, device)
        groups = radiance_field.parameter_groups(config.grid_lr, config.network_lr)
        if config.optimizer == "adan":
            optimizer = Adan(groups, eps=1e-8, weight_decay=2e-5)  # The values are those of the public code.
        else:
            # Unfused Adam makes a dozen passes over the hash table in each step.
            fused = torch.device(device).type in ("cpu", "cuda")
            optimizer = torch.optim.Adam(groups, betas=(0.9, 0.99), eps=1e-15, fused=fused)
        grid = initial_grid(config, radiance_field)
        views = None if views is None else views.to(device)
        return cls(
            prompt,
            negative_prompt,
            config,
            seed,
            prior,
            embeddings,
            radiance_field,
            optimizer,
            grid,
            generator,
            views,
            note,
        )


def run_layout(metadata: dict, found: Layout) -> Layout:
    """Return the expected layout of a run file with the given settings.

    Args:
        metadata: Metadata of the file.
        found: Actual layout of the file, which determines the optional tensors and some sizes.

    Raises:
        KeyError, TypeError, ValueError: If the metadata is invalid.
    """
    config = HiFAConfig(**metadata["config"])
    with torch.device("meta"):
        radiance_field = initial_field(config, 0)
    field_layout = module_layout(radiance_field)
    groups = radiance_field.parameter_groups(config.grid_lr, config.network_lr)
    parameters = [Spec(tuple(value.shape), value.dtype) for group in groups for value in group["params"]]
    moments = Adan.moments if config.optimizer == "adan" else MOMENTS
    optimizer = optimizer_layout(parameters, unprefixed("optimizer", found), moments)
    expected = prefixed("field", field_layout) | prefixed("optimizer", optimizer)
    expected |= layout_of({"generator": torch.Generator().get_state()})
    if config.density_grid:
        expected["grid"] = Spec((config.density_grid,) * 3)
    if metadata["prior"] is not None:
        expected["prompt_embeds"] = Spec((2 + len(VIEWS), None, None))
    if "pooled_prompt_embeds" in found:
        expected["pooled_prompt_embeds"] = Spec((2 + len(VIEWS), None))
    if unprefixed("views", found):
        expected |= prefixed("views", GivenViews.layout())
    if metadata["prior"] is not None and config.distillation == "vsd":
        learned = unprefixed("variational", found)
        expected |= prefixed("variational", saved_layout(learned, config.lora_rank))
        parameters = [learned[name] for name in sorted(learned)]
        state = optimizer_layout(parameters, unprefixed("variational_optimizer", found))
        expected |= prefixed("variational_optimizer", state)
    return expected
