"""A run that is opened by its address: the result panel shows it, and its tab what was entered for it."""

from collections.abc import AsyncIterator
from dataclasses import dataclass
from typing import Any

import gradio as gr

from .history import History
from .image_inputs import ImageInputs
from .panel import ResultPanel
from .settings import RunSettings
from .shown import Shown
from .store import Request, RunFolder, UnknownRunError
from .worker import Worker


@dataclass(frozen=True)
class Tab:
    """The parts of a tab that hold what was entered.

    Args:
        settings, prompt, inputs, guidance_end: Those of them that the tab has.
    """

    settings: RunSettings
    prompt: gr.Textbox | None = None
    inputs: ImageInputs | None = None
    guidance_end: gr.Slider | None = None

    @property
    def outputs(self) -> list[gr.blocks.Block]:
        parts = [part for part in (self.prompt, self.guidance_end) if part is not None]
        return [*self.settings.inputs, *parts, *(self.inputs.restorable if self.inputs else [])]

    def restored(self, folder: RunFolder, request: Request) -> list[Any]:
        """What a run was asked for with, one value for each of `outputs`."""
        values = self.settings.restored(request)
        if self.prompt is not None:
            values.append(request.prompt)
        if self.guidance_end is not None:
            values.append(request.settings.get("image_guidance_end", gr.skip()))
        return values + (self.inputs.restored(folder, request) if self.inputs else [])

    def fresh(self) -> list[Any]:
        """As it is, with what is known by now of how long a run takes."""
        return [self.settings.refreshed() if part is self.settings.preset else gr.skip() for part in self.outputs]


class Opening:
    """Fills a page when it is opened.

    Args:
        worker: Of the runs.
        history: Of all visitors.
        runs: Shows the list of the visitor's runs.
        tabs: All of them, to choose one.
        by_kind: Each, by the kind of its runs, which is its id too.
    """

    def __init__(
        self,
        worker: Worker,
        history: History,
        panel: ResultPanel,
        runs: gr.HTML,
        tabs: gr.Tabs,
        by_kind: dict[str, Tab],
    ):
        self.worker, self.history, self.store, self.panel = worker, history, worker.store, panel
        self.runs, self.tabs, self.by_kind = runs, tabs, by_kind

    @property
    def outputs(self) -> list[gr.blocks.Block]:
        entered = [part for tab in self.by_kind.values() for part in tab.outputs]
        return [*self.panel.outputs, self.runs, self.tabs, *entered]

    def open(self, visitor: Any, request: gr.Request) -> tuple:
        """What the address names as it is now, what was entered for it, the visitor's runs, and the visitor's name."""
        visitor = self.history.name(visitor)
        self.store.sweep()
        return *self._opened(self.history.html(visitor), request.query_params.get("run")), visitor

    def _opened(self, runs: str, run_id: str | None) -> tuple:
        nothing = [gr.skip(), *(value for tab in self.by_kind.values() for value in tab.fresh())]
        if not run_id:
            return *self.panel.values(Shown()), runs, *nothing
        try:
            folder = self.store.open(run_id)
            return *self.panel.values(self.worker.look(folder)), runs, *self._entered(folder, folder.read().request)
        except UnknownRunError as error:
            gr.Warning(str(error), duration=20)
            return *self.panel.values(Shown(text=str(error))), runs, *nothing

    async def follow(self, run_id: str) -> AsyncIterator[tuple]:
        """The opened run, while another window works on it."""
        if not run_id:
            # A stream of nothing would empty the panel.
            yield tuple(gr.skip() for _ in self.panel.live_outputs)
            return
        async for state in self.worker.follow(self.store.open(run_id)):
            yield self.panel.live_values(state)

    def _entered(self, folder: RunFolder, request: Request) -> list[Any]:
        """The tab of a run, and what was entered there."""
        values: list[Any] = [gr.Tabs(selected=request.kind)]
        for kind, tab in self.by_kind.items():
            values += tab.restored(folder, request) if kind == request.kind else tab.fresh()
        return values
