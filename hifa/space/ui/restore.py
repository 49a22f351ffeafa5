"""Restoration of a run that is opened by its URL: the result panel and the inputs of the run's tab."""

from collections.abc import AsyncIterator
from dataclasses import dataclass
from typing import Any

import gradio as gr
from gradio.blocks import BlockContext
from gradio.components import Component

from ..jobs.run_store import Request, RunFolder, UnknownRunError
from ..jobs.status import RunStatus
from ..jobs.worker import Worker
from .history import History
from .image_inputs import ImageInputs
from .result_panel import ResultPanel
from .run_settings import RunSettings


@dataclass(frozen=True)
class Tab:
    """Input components of a tab.

    Args:
        settings: Run settings.
        prompt: Prompt input, if the tab has one.
        inputs: Image inputs, if the tab has them.
        guidance_end: Slider for the end of the image guidance, if the tab has one.
    """

    settings: RunSettings
    prompt: gr.Textbox | None = None
    inputs: ImageInputs | None = None
    guidance_end: gr.Slider | None = None

    @property
    def outputs(self) -> list[Component | BlockContext]:
        """Components whose values `restored` returns."""
        parts = [part for part in (self.prompt, self.guidance_end) if part is not None]
        return [*self.settings.inputs, *parts, *(self.inputs.restorable if self.inputs else [])]

    def restored(self, folder: RunFolder, request: Request) -> list[Any]:
        """Return the inputs of a run, one value for each of `outputs`."""
        values = self.settings.restored(request)
        if self.prompt is not None:
            values.append(request.prompt)
        if self.guidance_end is not None:
            values.append(request.settings.get("image_guidance_end", gr.skip()))
        return values + (self.inputs.restored(folder, request) if self.inputs else [])

    def fresh(self) -> list[Any]:
        """Return values that keep the inputs of the tab and update the time estimate of the preset."""
        return [self.settings.refreshed() if part is self.settings.preset else gr.skip() for part in self.outputs]


class Opening:
    """Callbacks that fill the page when it is opened.

    Args:
        worker: Worker of the runs.
        history: Run histories of all visitors.
        panel: Result panel.
        runs: Component that shows the visitor's run history.
        tabs: Tabs of the page.
        by_kind: Tab of each kind of run. The kind is also the id of the tab.
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
    def outputs(self) -> list[Component | BlockContext]:
        """Components whose values `open` returns, without the name of the browser."""
        entered = [part for tab in self.by_kind.values() for part in tab.outputs]
        return [*self.panel.outputs, self.runs, self.tabs, *entered]

    def open(self, visitor: Any, request: gr.Request) -> tuple:
        """Return the state of the page: the run in the URL, its inputs, and the visitor's history and name.

        Expired runs are deleted first.

        Args:
            visitor: Name of the browser, untrusted.
            request: Request whose query parameter `run` is the id of the run.

        Returns:
            One value for each of `outputs`, then the name of the browser.
        """
        visitor = self.history.name(visitor)
        self.store.sweep()
        return *self._opened(self.history.html(visitor), request.query_params.get("run")), visitor

    def _opened(self, runs: str, run_id: str | None) -> tuple:
        nothing = [gr.skip(), *(value for tab in self.by_kind.values() for value in tab.fresh())]
        if not run_id:
            return *self.panel.values(RunStatus()), runs, *nothing
        try:
            folder = self.store.open(run_id)
            return *self.panel.values(self.worker.look(folder)), runs, *self._entered(folder, folder.read().request)
        except UnknownRunError as error:
            gr.Warning(str(error), duration=20)
            return *self.panel.values(RunStatus(text=str(error))), runs, *nothing

    async def follow(self, run_id: str) -> AsyncIterator[tuple]:
        """Stream the state of the opened run while another window works on the run."""
        if not run_id:
            # A stream without values would clear the panel.
            yield tuple(gr.skip() for _ in self.panel.live_outputs)
            return
        async for state in self.worker.follow(self.store.open(run_id)):
            yield self.panel.live_values(state)

    def _entered(self, folder: RunFolder, request: Request) -> list[Any]:
        """Return values that select the tab of a run and restore its inputs."""
        values: list[Any] = [gr.Tabs(selected=request.kind)]
        for kind, tab in self.by_kind.items():
            values += tab.restored(folder, request) if kind == request.kind else tab.fresh()
        return values
