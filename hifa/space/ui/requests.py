"""Creation of runs from user input. All input is checked here, before any work starts."""

import contextlib
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import gradio as gr
import PIL.Image

from ...config import HiFAConfig
from ...pipeline_hifa import HiFAPipeline
from ...prompts import PromptError
from ..jobs.errors import explain
from ..jobs.models import ModelCache
from ..jobs.run_store import FINISHED, PICTURE, Request, RunFolder, RunStore
from ..jobs.view_sheets import Sheets
from .validation import choose_seed, one_line, read_photo, read_sheet


MAX_SEEDS = 4
HIGHEST, LOWEST = 90, -90  # degrees


@dataclass(frozen=True)
class Guided:
    """Inputs of an image tab.

    Args:
        photo: Path of an uploaded picture, or `None`.
        object_share: See `Request`.
        elevation_deg: See `Request`.
        sheet: Path of an uploaded sheet of views, or `None`. The sheet takes precedence over the picture.
        chosen: Run id and seed of a generated sheet that the user selected, or `None`.
        seeds: Number of sheets to generate if there is no sheet. Clamped to [1, `MAX_SEEDS`].
        view_steps: Number of denoising steps for the generated sheets. Default: the number in the config of the
            multi-view model.
    """

    photo: str | None
    object_share: float
    elevation_deg: float
    sheet: str | None = None
    chosen: tuple[str, int] | None = None
    seeds: int = 1
    view_steps: int | None = None


@contextlib.contextmanager
def user_errors() -> Iterator[None]:
    """Convert errors in the body to `gr.Error`, so that the page shows them as messages.

    Raises:
        gr.Error: For a `ValueError`, `TypeError` or `OSError` in the body, with the text of `explain`.
    """
    try:
        yield
    except gr.Error:
        raise
    except (ValueError, TypeError, OSError) as error:
        raise gr.Error(explain(error), duration=20, print_exception=False) from error


class Actions:
    """Factory of the runs in a store.

    Args:
        store: Store of the runs.
        model_cache: Cache of the priors. The requested prior is loaded before the run enters the queue, so that a
            missing prior is reported early.
        view_steps: Default number of denoising steps of the multi-view model.
    """

    def __init__(self, store: RunStore, model_cache: ModelCache, view_steps: int):
        self.store, self.model_cache, self.view_steps = store, model_cache, view_steps

    def text(
        self, prompt: str, negative: str, prior: str, seed: Any, randomize: bool, settings: dict[str, Any]
    ) -> tuple[RunFolder, str]:
        """Create a waiting run from a prompt.

        Args:
            prompt: Text prompt.
            negative: Negative prompt.
            prior: Key of the prior.
            seed: Seed; unused if `randomize` is set.
            randomize: Draw a random seed.
            settings: Fields of `HiFAConfig` that differ from the defaults.

        Returns:
            The folder of the run, and a notice for the user. The notice is empty unless the fallback prior is used.

        Raises:
            ValueError: If an input is invalid.
        """
        prompt, negative = one_line(prompt), one_line(negative)
        key, pipe, notice = self.model_cache.get_or_fall_back(prior)
        try:
            with self.model_cache.tokenizing:
                pipe.check_inputs(prompt, negative)
        except PromptError as error:  # The notice says whether the fallback prior is in use.
            raise PromptError(f"{notice} {error}".strip()) from error
        HiFAConfig(**settings)
        request = Request("text", prompt, key, choose_seed(seed, randomize), negative, settings)
        return self.store.create(request), notice

    def guided(
        self,
        kind: str,
        given: Guided,
        prompt: str,
        negative: str,
        prior: str,
        seed: Any,
        randomize: bool,
        settings: dict[str, Any],
        views_only: bool = False,
    ) -> tuple[RunFolder, str]:
        """Create a waiting run from a picture or a sheet of views.

        Args:
            kind: `"image"` or `"hallucination"`.
            given: Inputs of the image tab.
            prompt: Text prompt; empty for a reconstruction without distillation.
            negative: Negative prompt.
            prior: Key of the prior; unused without a prompt.
            seed: Seed; unused if `randomize` is set.
            randomize: Draw a random seed.
            settings: Fields of `HiFAConfig` that differ from the defaults.
            views_only: Only generate the views, without an optimization.

        Returns:
            The folder of the run, and a notice for the user, which may be empty.

        Raises:
            ValueError: If an input is invalid.
        """
        prompt, negative, notice = one_line(prompt), one_line(negative), ""
        pictures = self._pictures(given, views_only)
        if not LOWEST <= given.elevation_deg <= HIGHEST:
            raise ValueError(f"The elevation must be from {LOWEST} to {HIGHEST} degrees, got {given.elevation_deg:g}.")
        if kind == "hallucination" and not prompt and not views_only:
            raise ValueError("The prompt is empty. Describe the object in the picture, or use the tab Image to 3D.")
        if prompt:
            prior, pipe, notice = self.model_cache.get_or_fall_back(prior)
            extra = self._check_prompt_with_views(pipe, prompt, negative, settings, notice)
            notice = f"{notice} {extra}".strip()
        else:
            prior = self.model_cache.fallback.key
        HiFAConfig(**settings)
        seed = choose_seed(seed, randomize)
        view_seeds = tuple(seed + i for i in range(min(max(given.seeds, 1), MAX_SEEDS)))
        request = Request(
            kind, prompt, prior, seed, negative, settings, given.object_share, given.elevation_deg,
            view_seeds, given.view_steps, views_only,
        )  # fmt: skip
        folder = self.store.create(request)
        if "sheet" in pictures:
            Sheets(folder.path).give(pictures["sheet"])
        if "picture" in pictures:
            pictures["picture"].save(folder.path / PICTURE)
        return folder, notice

    def check_resumable(self, folder: RunFolder) -> None:
        """Load the prior of a run in the server process, before the run enters the queue and gets a lease.

        Args:
            folder: The run.

        Raises:
            ValueError: If the prior cannot be loaded. A run cannot be resumed with a different prior.
        """
        record = folder.read()
        if record.status == FINISHED:  # Only files may be missing, and they do not need the prior.
            return
        prior = record.request.prior
        try:
            self.model_cache.get(prior)
        except Exception as error:
            name = self.model_cache.priors[prior].name if prior in self.model_cache.priors else prior
            raise ValueError(
                f"This run needs {name}, which cannot be loaded now: {self.model_cache.problem(prior) or error}. "
                "The run is saved. Resume later, or on a machine where the prior can be loaded."
            ) from error

    def _check_prompt_with_views(
        self, pipe: HiFAPipeline, prompt: str, negative: str, settings: dict[str, Any], notice: str
    ) -> str:
        """Check the prompt of a run that is guided by views.

        A prompt that the prior does not support is an error only if the image guidance ends before the run does.
        Otherwise the views alone define the object.

        Returns:
            A notice that the run uses the views alone; empty if the prior supports the prompt.

        Raises:
            PromptError: If the prior does not support the prompt and the image guidance ends early.
            ValueError: If the prompt is invalid.
        """
        try:
            with self.model_cache.tokenizing:
                pipe.check_inputs(prompt, negative)
        except PromptError as error:
            if settings.get("image_guidance_end", 1.0) < 1:
                raise PromptError(f"{notice} {error}".strip()) from error
            return f"The object is reconstructed from the views only, without the prior: {error}"
        return ""

    def _pictures(self, given: Guided, views_only: bool) -> dict[str, PIL.Image.Image]:
        """Return the image to store in the folder of the run.

        Order of precedence: uploaded sheet, selected sheet, picture.

        Returns:
            One entry, `"sheet"` or `"picture"`.
        """
        if not views_only and given.sheet is not None:
            return {"sheet": read_sheet(given.sheet)}
        if not views_only and given.chosen is not None:
            run_id, seed = given.chosen
            return {"sheet": Sheets(self.store.open(run_id).path).open(int(seed))}
        return {"picture": read_photo(given.photo, given.object_share).image}
