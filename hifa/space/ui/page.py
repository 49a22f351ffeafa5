"""The Gradio page: three input tabs, a result panel, the visitor's runs, and all event handlers."""

from collections.abc import Callable, Iterator
from typing import Any

import gradio as gr

from ..jobs.exports import MeshOptions
from ..jobs.run_store import RunFolder, UnknownRunError
from ..jobs.status import shown, waiting
from ..jobs.worker import Worker, current
from .api import Api
from .events import afterwards
from .gallery import ExampleGallery
from .history import NAME_OF_BROWSER, History
from .hub_form import HubForm
from .image_inputs import ImageInputs
from .prompt_help import knows_few_words, prompt_hint, vocabulary_html
from .requests import Actions, user_errors
from .restore import Opening, Tab
from .result_panel import ResultPanel, resumable
from .run_settings import RunSettings


HEADER = """# HiFA: text to 3D
Watch an object take shape. Stop at any time to export the current state. Resume continues the run."""
HOUR = 3600
QUEUE_SIZE = 24
GPU: dict[str, Any] = {"concurrency_id": "gpu", "concurrency_limit": QUEUE_SIZE}  # runs wait in the worker's own queue
EXPORT: dict[str, Any] = {"concurrency_id": "export", "concurrency_limit": 2}
KEEP_ADDRESS = """() => {
  const link = document.querySelector('#share a');
  const address = new URL(window.location);
  if (!link) {  // an example has no run: a reload must not open the previous run
    address.searchParams.delete('run');
    window.history.replaceState(null, '', address);
    return;
  }
  address.searchParams.set('run', new URL(link.href).searchParams.get('run'));
  const opened = window.location.search === address.search;
  window.history.replaceState(null, '', address);
  // A Space is a frame in a page of the Hub. Visitors reload and copy the address of that page.
  if (window.parent !== window) window.parent.postMessage({queryString: address.search}, 'https://huggingface.co');
  // On a phone, the result is below the tabs. Scroll to the result if the visitor opened the address of a run.
  if (opened && window.innerWidth < 700) document.querySelector('#progress').scrollIntoView();
}"""
PRIVATE: dict[str, Any] = {"api_visibility": "private"}
QUIET: dict[str, Any] = {"show_progress": "hidden", **PRIVATE}


class Page:
    """All components of the page and their event handlers.

    Args:
        demo: `gr.Blocks` that the page is built in.
        worker: Executes the runs.
        actions: Validates requests and creates the runs.
        zero: Whether the app runs on ZeroGPU.
        endpoint: URL of the Hugging Face Hub; `None` for the default.
    """

    def __init__(self, demo: gr.Blocks, worker: Worker, actions: Actions, zero: bool, endpoint: str | None):
        self.worker, self.actions, self.store = worker, actions, worker.store
        self.model_cache = actions.model_cache
        self.pending = gr.State(False)
        self.history = History(self.store)
        self.visitor = gr.Textbox(visible=False)
        gr.Markdown(HEADER)
        self.notice = gr.Markdown(visible=False, elem_id="notice")
        with gr.Row():
            with gr.Column(scale=2, min_width=320):
                with gr.Tabs() as self.tabs:
                    with gr.Tab("Text to 3D", id="text"):
                        self._text_tab(zero)
                    with gr.Tab("Image to 3D", id="image"):
                        self._image_tab(zero)
                    with gr.Tab("Image-guided hallucination", id="hallucination"):
                        self._hallucination_tab(zero)
                with gr.Accordion("Your runs", open=False, elem_id="history"):
                    self.runs = gr.HTML()
            with gr.Column(scale=3, min_width=320):
                self.panel = ResultPanel()
                self.hub = HubForm(self.store, self.model_cache, self.panel.hub_place, endpoint)
        self._wire(demo)

    # Tabs

    def _text_tab(self, zero: bool) -> None:
        self.prompt = gr.Textbox(
            label="Prompt", placeholder="a red mushroom", max_length=500, autofocus=True, elem_id="prompt", lines=1
        )
        self.hint = gr.HTML(elem_id="prompt-hint", visible=False)
        self.generate = gr.Button("Generate", variant="primary", elem_id="generate")
        self.settings = RunSettings("text", "text", self.model_cache, self.worker.timings, zero)
        self.examples = ExampleGallery("text", "text", self.settings, self.prompt)
        with gr.Accordion("Words that Toybox knows", open=False):
            gr.HTML(vocabulary_html())

    def _image_tab(self, zero: bool) -> None:
        self.image = ImageInputs("image", self.store, self.actions.view_steps)
        self.reconstruct = gr.Button("Reconstruct", variant="primary", elem_id="reconstruct")
        self.image_settings = RunSettings("image", "image", self.model_cache, self.worker.timings, zero)
        self.image_examples = ExampleGallery("image", "image", self.image_settings)

    def _hallucination_tab(self, zero: bool) -> None:
        self.guided_prompt = gr.Textbox(
            label="Prompt", placeholder="a yellow duck", max_length=500, elem_id="guided-prompt",
            info="What the picture shows, or what it should become.", lines=1,
        )  # fmt: skip
        self.guided_hint = gr.HTML(elem_id="guided-hint", visible=False)
        self.guided = ImageInputs("guided", self.store, self.actions.view_steps)
        self.guidance_end = gr.Slider(
            0.05, 1.0, 0.5, step=0.05, label="Share of the run that the picture guides", elem_id="guidance-end",
            info="The picture's influence fades out until then; after that, only the prompt guides. 1: no fading.",
        )  # fmt: skip
        self.hallucinate = gr.Button("Hallucinate", variant="primary", elem_id="hallucinate")
        self.guided_settings = RunSettings("guided", "hallucination", self.model_cache, self.worker.timings, zero)
        self.guided_examples = ExampleGallery(
            "hallucination", "guided", self.guided_settings, self.guided_prompt, self.guidance_end
        )
        with gr.Accordion("Words that Toybox knows", open=False):
            gr.HTML(vocabulary_html())

    # Events

    @property
    def starters(self) -> list[gr.Button]:
        """Buttons that start work. They are disabled while a run is pending."""
        return [self.generate, self.reconstruct, self.hallucinate, self.image.make, self.guided.make]

    def _entered(self) -> dict[str, Tab]:
        """Return the tabs by the kind of run that each tab starts."""
        return {
            "text": Tab(self.settings, self.prompt),
            "image": Tab(self.image_settings, inputs=self.image),
            "hallucination": Tab(self.guided_settings, self.guided_prompt, self.guided, self.guidance_end),
        }

    def _wire(self, demo: gr.Blocks) -> None:
        panel = self.panel
        panel.wire()
        for settings in (self.settings, self.image_settings, self.guided_settings):
            settings.wire()
        for inputs in (self.image, self.guided):
            inputs.wire()
        if knows_few_words(self.model_cache.get(self.model_cache.fallback.key).tokenizer):
            for prompt, settings, hint in (
                (self.prompt, self.settings, self.hint), (self.guided_prompt, self.guided_settings, self.guided_hint),
            ):  # fmt: skip
                gr.on(
                    [prompt.change, settings.prior.change], self._on_prompt, [prompt, settings.prior], hint,
                    trigger_mode="always_last", queue=False, **QUIET,
                )  # fmt: skip
        # The streams `followed`, `extracted` and `made` write to the panel until a run starts or an example is opened.
        opening = Opening(self.worker, self.history, panel, self.runs, self.tabs, self._entered())
        opened = [*opening.outputs, self.visitor]
        loaded = demo.load(
            opening.open, self.visitor, opened, concurrency_limit=None, js=NAME_OF_BROWSER, **QUIET
        )  # fmt: skip
        demo.load(self.tell_notice, None, self.notice, queue=False, **QUIET)
        followed = loaded.success(opening.follow, panel.run_id, panel.live_outputs, concurrency_limit=None, **QUIET)
        extracted = panel.extract.click(
            self.remake_mesh, [panel.run_id, panel.faces, panel.texture], panel.live_outputs, show_progress="minimal",
            show_progress_on=panel.progress, cancels=[followed], **EXPORT, **PRIVATE,
        )  # fmt: skip
        made = panel.make_files.click(
            self.make_files, panel.run_id, panel.live_outputs, show_progress="minimal",
            show_progress_on=panel.progress, cancels=[followed, extracted], **EXPORT, **PRIVATE,
        )  # fmt: skip
        streams: list[dict[str, Any]] = [followed, extracted, made]
        # Cancel the streams when a run is accepted, not on the click: after a refused click they must continue.
        self.pending.change(None, None, None, cancels=streams, **PRIVATE)
        self._start(
            [self.generate.click, self.prompt.submit], self.prepare_text, [self.prompt, *self.settings.inputs],
            self.generate, self.settings.seed,
        )  # fmt: skip
        self._start(
            [self.reconstruct.click], self.prepare_image, [*self.image.inputs, *self.image_settings.inputs],
            self.reconstruct, self.image_settings.seed,
        )  # fmt: skip
        self._start(
            [self.hallucinate.click], self.prepare_hallucination,
            [self.guided_prompt, self.guidance_end, *self.guided.inputs, *self.guided_settings.inputs],
            self.hallucinate, self.guided_settings.seed,
        )  # fmt: skip
        for inputs, settings in ((self.image, self.image_settings), (self.guided, self.guided_settings)):
            self._start(
                [inputs.make.click], self.prepare_views, [*inputs.inputs, settings.seed, settings.randomize],
                inputs.make, settings.seed, then=inputs,
            )  # fmt: skip
        self._start([panel.resume.click], self.prepare_resume, [panel.run_id], panel.resume, None)
        for examples in (self.examples, self.image_examples, self.guided_examples):
            examples.wire(panel, self.pending, self._refuse_second, streams)
        self.hub.wire(panel.run_id)
        panel.stop.click(self.stop, panel.run_id, panel.stop, queue=False, **QUIET)
        panel.later.click(self.put_off_files, panel.run_id, None, queue=False, **QUIET)
        # Two listeners: a single listener calls its function before it cancels, and updates of the stream in between
        # would overwrite the output of the function.
        panel.cancel_extract.click(None, None, None, cancels=[extracted], **PRIVATE)
        panel.cancel_extract.click(self.let_go, panel.run_id, panel.outputs, **QUIET)
        panel.share.change(None, None, None, js=KEEP_ADDRESS, **PRIVATE)

    def _start(
        self,
        triggers: list[Callable],
        prepare: Callable,
        inputs: list,
        button: gr.Button,
        seed: gr.Number | None,
        then: ImageInputs | None = None,
    ) -> None:
        """Connect the events of an action that starts work: prepare the run, work, and reset the page.

        Args:
            triggers: Event listeners that start the action.
            prepare: Handler that gets the values of `inputs`, the visitor and whether a run is pending. It returns the
                values of the outputs below, or raises `gr.Error` for a request that cannot run.
            inputs: Components whose values `prepare` gets.
            button: Component with the progress and error state of `prepare`.
            seed: Field that receives the seed of the run; `None` for none.
            then: Image inputs that display the generated views after the work; `None` for none.
        """
        panel, shared = self.panel, [self.visitor, self.pending]
        seeds = [] if seed is None else [seed]
        # `prepare` uses the queue, without a concurrency limit, because the browser does not receive error messages of
        # unqueued events. The error state is attached to the button, which displays no state, so that only the message
        # appears. If attached to the outputs, each output would display a bare "Error".
        prepared = gr.on(
            triggers, prepare, [*inputs, *shared], [*seeds, *shared, *self.starters, panel.stop, *panel.outputs],
            concurrency_limit=None, show_progress="hidden", show_progress_on=button, **PRIVATE,
        )  # fmt: skip
        worked = prepared.success(
            self.work, panel.run_id, panel.live_outputs, show_progress="minimal", show_progress_on=panel.progress,
            scroll_to_output=True, **GPU, **PRIVATE,
        )  # fmt: skip
        # For example, a full queue refuses the work. The run then waits in the store and can be resumed.
        reopened = worked.failure(self.reopen, panel.run_id, panel.outputs, queue=False, **QUIET)
        panel.load_after(reopened)
        if then is not None:
            for shown_after in afterwards(worked, then.show_views, panel.run_id, then.views, queue=False, **QUIET):
                then.tell_source(shown_after)
        settings = (self.settings, self.image_settings, self.guided_settings)
        afterwards(
            worked, self.rest,
            [panel.run_id, self.visitor, *(part for s in settings for part in (s.prior, s.preset, s.steps))],
            [self.pending, *self.starters, panel.stop, panel.resume_place, self.runs, *(s.preset for s in settings)],
            queue=False, **QUIET,
        )  # fmt: skip

    # Event handlers

    def tell_notice(self) -> gr.Markdown:
        """Return the notice for all visitors, hidden if there is none."""
        notice = self.model_cache.notice()
        return gr.Markdown(notice, visible=bool(notice))

    def _on_prompt(self, prompt: str, prior: str):
        hint = prompt_hint(prompt) if prior == self.model_cache.fallback.key else ""
        return gr.HTML(hint, visible=bool(hint))

    def prepare_text(
        self, prompt, prior, preset, seed, randomize, steps, guidance, stride, negative, visitor, pending
    ) -> tuple:
        """Create a run from a prompt, see `_start`."""
        self._refuse_second(pending)
        self._tell_of_loading(prior)
        with user_errors():
            settings = self.settings.settings_of(prior, preset, steps, guidance, stride)
            folder, notice = self.actions.text(prompt, negative, prior, seed, randomize, settings)
        return self._prepared(folder, notice, visitor)

    def prepare_image(self, *values) -> tuple:
        """Create a reconstruction from a picture, see `_start`."""
        *entered, visitor, pending = values
        self._refuse_second(pending)
        given, (prior, preset, seed, randomize, steps, *_) = entered[:8], entered[8:]
        with user_errors():
            settings = self.image_settings.settings_of(prior, preset, steps, None, None)
            folder, notice = self.actions.guided(
                "image", ImageInputs.given(*given), "", "", prior, seed, randomize, settings
            )
        return self._prepared(folder, notice, visitor)

    def prepare_hallucination(self, prompt, guidance_end, *values) -> tuple:
        """Create a run from a prompt and a picture, see `_start`."""
        *entered, visitor, pending = values
        self._refuse_second(pending)
        given, (prior, preset, seed, randomize, steps, guidance, stride, negative) = entered[:8], entered[8:]
        self._tell_of_loading(prior)
        with user_errors():
            settings = self.guided_settings.settings_of(prior, preset, steps, guidance, stride)
            settings["image_guidance_end"] = float(guidance_end)
            folder, notice = self.actions.guided(
                "hallucination", ImageInputs.given(*given), prompt, negative, prior, seed, randomize, settings
            )
        return self._prepared(folder, notice, visitor)

    def prepare_views(self, *values) -> tuple:
        """Create a run that only generates views, see `_start`."""
        *given, seed, randomize, visitor, pending = values
        self._refuse_second(pending)
        with user_errors():
            folder, notice = self.actions.guided(
                "image", ImageInputs.given(*given), "", "", self.model_cache.fallback.key, seed, randomize, {}, True
            )
        return self._prepared(folder, notice, visitor)

    def prepare_resume(self, run_id, visitor, pending) -> tuple:
        """Prepare the run in the result panel to be resumed, see `_start`."""
        self._refuse_second(pending)
        with user_errors():
            folder = self.store.open(run_id)
            self._tell_of_loading(folder.read().request.prior)
            self.actions.check_resumable(folder)
            folder.clear_stop()
        # Leave out the seed: Resume has no seed field.
        return self._prepared(folder, "", visitor)[1:]

    def _refuse_second(self, pending: bool) -> None:
        if pending:
            raise gr.Error("Another run is in progress. Stop it first, or wait until it ends.", print_exception=False)

    def _tell_of_loading(self, key: str) -> None:
        """Display a notice if the prior must be loaded first. A download takes minutes without any other feedback."""
        if notice := self.model_cache.loading_notice(key):
            gr.Info(notice, duration=20)

    def _prepared(self, folder: RunFolder, notice: str, visitor: Any) -> tuple:
        if notice:
            gr.Warning(notice, duration=20)
        record = folder.read()
        first = waiting(folder, record, "Waiting in the queue …")
        off = [gr.Button(interactive=False) for _ in self.starters]
        kept = self.history.remember(visitor, folder.id)
        # Reset the button, which reads "Stopping …" if the previous run was stopped.
        stop = gr.Button("Stop", interactive=True)
        return record.request.seed, kept, True, *off, stop, *self.panel.values(first)

    def work(self, run_id: str) -> Iterator[tuple]:
        """Advance a run and stream its state to the result panel."""
        with user_errors():
            # Hide Resume, which is refused while the run is pending. `rest` displays the button.
            yield from self.panel.stream(self.worker.advance(self.store.open(run_id)), offering=False)

    def stop(self, run_id: str) -> gr.Button:
        """Request a stop of a run, and return the disabled Stop button."""
        with user_errors():
            self.store.open(run_id).request_stop()
        return gr.Button("Stopping …", interactive=False)

    def put_off_files(self, run_id: str) -> None:
        """Postpone the files of a run that are being made."""
        with user_errors():
            self.store.open(run_id).put_off_files()

    def rest(self, run_id: str, visitor: Any, *chosen: Any) -> tuple:
        """Enable all start buttons again and refresh the time estimates."""
        on = [gr.Button(interactive=True) for _ in self.starters]
        settings = (self.settings, self.image_settings, self.guided_settings)
        presets = [s.refreshed(*chosen[3 * i : 3 * i + 3]) for i, s in enumerate(settings)]
        stop = gr.Button("Stop", interactive=True)
        try:
            resume = gr.Column(visible=resumable(self.worker.look(self.store.open(run_id))))
        except UnknownRunError:  # the run was deleted in the meantime
            resume = gr.Column(visible=False)
        return False, *on, stop, resume, self.history.html(visitor), *presets

    def remake_mesh(self, run_id: str, faces: float, texture: float) -> Iterator[tuple]:
        """Extract the mesh of a run again and stream the state of the run to the result panel."""
        with user_errors():
            options = MeshOptions(max_faces=int(faces), texture_size=int(texture))
            yield from self.panel.stream(self.worker.remake_mesh(self.store.open(run_id), options))

    def make_files(self, run_id: str) -> Iterator[tuple]:
        """Make the missing files of a run and stream the state of the run to the result panel."""
        with user_errors():
            yield from self.panel.stream(self.worker.make_files(self.store.open(run_id)))

    def let_go(self, run_id: str) -> tuple:
        """Wait until the canceled extraction releases the run, then return the state of the run."""
        with user_errors(), self.store.open(run_id).locked():
            pass
        return self.reopen(run_id)

    def reopen(self, run_id: str) -> tuple:
        """Return the state of a run for the result panel."""
        with user_errors():
            folder = self.store.open(run_id)
        return self.panel.values(shown(folder, current(folder, folder.read(), held=False)))


def build_page(worker: Worker, actions: Actions, zero: bool = False, endpoint: str | None = None) -> gr.Blocks:
    """Build the app, ready to launch. Arguments are those of `Page`."""
    with gr.Blocks(title="HiFA: text to 3D", analytics_enabled=False, delete_cache=(HOUR, 24 * HOUR)) as demo:
        # Build the API first: Gradio appends a suffix to endpoint names that are already taken.
        Api(worker, actions, GPU, EXPORT).build()
        Page(demo, worker, actions, zero, endpoint)
    worker.store.served.keep(demo)
    return demo.queue(max_size=QUEUE_SIZE, default_concurrency_limit=1)
