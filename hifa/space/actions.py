"""From what a visitor entered to a run that waits: every check is here, before any work."""

import contextlib
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import gradio as gr
import PIL.Image

from ..config import HiFAConfig
from ..pipeline_hifa import HiFAPipeline
from ..prompts import PromptError
from .errors import explain
from .inputs import choose_seed, one_line, read_photo, read_sheet
from .priors import PriorShelf
from .sheets import Sheets
from .store import FINISHED, PICTURE, Request, RunFolder, RunStore


MAX_SEEDS = 4
HIGHEST, LOWEST = 90, -90  # degrees


@dataclass(frozen=True)
class Guided:
    """What an image tab was given.

    Args:
        photo: Path of an uploaded picture, or `None`.
        object_share, elevation_deg: See `Request`.
        sheet: Path of an uploaded sheet, or `None`; it is used in place of the picture.
        chosen: The run and the seed of a sheet that was made and chosen, or `None`.
        seeds: How many sheets to make, if they have to be made.
        view_steps: Denoising steps for them; as many as the multi-view model is made for without it.
    """

    photo: str | None
    object_share: float
    elevation_deg: float
    sheet: str | None = None
    chosen: tuple[str, int] | None = None
    seeds: int = 1
    view_steps: int | None = None


@contextlib.contextmanager
def told() -> Iterator[None]:
    """Errors of the visitor become messages to the visitor."""
    try:
        yield
    except gr.Error:
        raise
    except (ValueError, TypeError, OSError) as error:
        raise gr.Error(explain(error), duration=20, print_exception=False) from error


class Actions:
    """Makes runs of a store out of requests.

    Args:
        shelf: Of the priors; the one that is asked for is loaded here, so that its absence is known before the queue.
        view_steps: Denoising steps that the multi-view model is made for.
    """

    def __init__(self, store: RunStore, shelf: PriorShelf, view_steps: int):
        self.store, self.shelf, self.view_steps = store, shelf, view_steps

    def text(
        self, prompt: str, negative: str, prior: str, seed: Any, randomise: bool, settings: dict[str, Any]
    ) -> tuple[RunFolder, str]:
        """A waiting run from a prompt, and a notice if another prior has to do; errors are `ValueError`s."""
        prompt, negative = one_line(prompt), one_line(negative)
        key, pipe, notice = self.shelf.get_or_fall_back(prior)
        try:
            with self.shelf.tokenizing:
                pipe.check_inputs(prompt, negative)
        except PromptError as error:  # of which the visitor asked another prior
            raise PromptError(f"{notice} {error}".strip()) from error
        HiFAConfig(**settings)
        request = Request("text", prompt, key, choose_seed(seed, randomise), negative, settings)
        return self.store.create(request), notice

    def guided(
        self,
        kind: str,
        given: Guided,
        prompt: str,
        negative: str,
        prior: str,
        seed: Any,
        randomise: bool,
        settings: dict[str, Any],
        views_only: bool = False,
    ) -> tuple[RunFolder, str]:
        """A waiting run from a picture or a sheet; errors are `ValueError`s."""
        prompt, negative, notice = one_line(prompt), one_line(negative), ""
        pictures = self._pictures(given, views_only)
        if not LOWEST <= given.elevation_deg <= HIGHEST:
            raise ValueError(f"The elevation must be from {LOWEST} to {HIGHEST} degrees, got {given.elevation_deg:g}.")
        if kind == "hallucination" and not prompt and not views_only:
            raise ValueError("The prompt is empty. Say what the picture shows, or use the tab Image to 3D.")
        if prompt:
            prior, pipe, notice = self.shelf.get_or_fall_back(prior)
            beside = self._check_beside_views(pipe, prompt, negative, settings, notice)
            notice = f"{notice} {beside}".strip()
        else:
            prior = self.shelf.fallback.key
        HiFAConfig(**settings)
        seed = choose_seed(seed, randomise)
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
        """Load the prior of a run before its turn, in the server and not in a lease.

        Raises:
            ValueError: If it cannot be loaded; nothing else can go on with the run.
        """
        record = folder.read()
        if record.status == FINISHED:  # only its files may be missing
            return
        prior = record.request.prior
        try:
            self.shelf.get(prior)
        except Exception as error:
            name = self.shelf.priors[prior].name if prior in self.shelf.priors else prior
            raise ValueError(
                f"This run needs {name}, which cannot be loaded now: {self.shelf.problem(prior) or error}. "
                "Nothing is lost: Resume later, or where it can."
            ) from error

    def _check_beside_views(
        self, pipe: HiFAPipeline, prompt: str, negative: str, settings: dict[str, Any], notice: str
    ) -> str:
        """Refuse a bad prompt; one that the prior cannot read is only told of where the views guide to the end."""
        try:
            with self.shelf.tokenizing:
                pipe.check_inputs(prompt, negative)
        except PromptError as error:
            if settings.get("image_guidance_end", 1.0) < 1:
                raise PromptError(f"{notice} {error}".strip()) from error
            return f"The views are reconstructed alone, without the prior: {error}"
        return ""

    def _pictures(self, given: Guided, views_only: bool) -> dict[str, PIL.Image.Image]:
        """What goes into the folder of a run: the uploaded sheet, the chosen one, or the picture, in this order."""
        if not views_only and given.sheet is not None:
            return {"sheet": read_sheet(given.sheet)}
        if not views_only and given.chosen is not None:
            run_id, seed = given.chosen
            return {"sheet": Sheets(self.store.open(run_id).path).open(int(seed))}
        return {"picture": read_photo(given.photo, given.object_share).image}
