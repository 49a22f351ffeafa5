"""Controls of a tab for the settings of a run: prior, preset, seed and advanced settings."""

import json
from typing import Any

import gradio as gr

from ..jobs.models import RECONSTRUCTION_PRESETS, ModelCache, Preset, Prior
from ..jobs.run_store import Request
from ..jobs.step_times import Timings, clock, work_key
from .validation import MAX_SEED


MIN_STEPS, MAX_STEPS = 10, 10_000
ADVANCED = ("guidance_scale", "denoising_stride")
QUOTA = "The time counts toward your daily GPU quota. If the quota is used up, the run pauses and can be resumed."


class RunSettings:
    """Components for the settings of a run, built in the current Gradio context.

    Args:
        name: Prefix of the element ids.
        kind: Kind of the run, as in `Request`. It determines the presets and the step times.
        model_cache: Cache of the priors on offer.
        timings: Step times measured on this machine.
        zero: Whether the app runs on ZeroGPU. If so, the controls mention the daily quota.
    """

    def __init__(self, name: str, kind: str, model_cache: ModelCache, timings: Timings, zero: bool):
        self.kind, self.model_cache, self.timings, self.zero = kind, model_cache, timings, zero
        self.distills = kind != "image"
        self.first = model_cache.default  # initial prior of the page, even if it fails to load later
        prior, presets = self.first, self.presets(self.first.key)
        self.prior = gr.Dropdown(
            [(p.name, p.key) for p in model_cache.priors.values()],
            value=prior.key, label="Prior", visible=self.distills, elem_id=f"{name}-prior",
            filterable=False, info=about(model_cache, prior),
        )  # fmt: skip
        default = presets[min(1, len(presets) - 1)]
        self.preset = gr.Radio(
            [p.name for p in presets], value=default.name, label="Preset", elem_id=f"{name}-preset",
            info=self.estimate(prior.key, default, default.steps),
        )  # fmt: skip
        with gr.Row(equal_height=True):
            self.seed = gr.Number(
                0, label="Seed", precision=0, minimum=0, maximum=MAX_SEED, elem_id=f"{name}-seed", min_width=120
            )
            self.randomize = gr.Checkbox(
                True, label="New seed each time", container=True, elem_id=f"{name}-randomize", min_width=120
            )
        with gr.Accordion("Advanced settings", open=False, elem_id=f"{name}-advanced"):
            self.steps = gr.Number(
                default.steps, label="Steps", precision=0, minimum=MIN_STEPS, maximum=MAX_STEPS,
                elem_id=f"{name}-steps", info="More steps take longer and give finer results.",
            )  # fmt: skip
            # Text fields, because the browser turns an empty number field into 0.
            self.guidance = gr.Textbox(
                label="Guidance scale", placeholder="as the preset has it", max_length=20, visible=self.distills,
                elem_id=f"{name}-guidance", info="Higher values follow the prompt more closely.",
            )  # fmt: skip
            self.stride = gr.Textbox(
                label="Denoising stride", placeholder="as the preset has it", max_length=20, visible=self.distills,
                elem_id=f"{name}-stride", info="From 0 to 1. Smaller values denoise more often in a step.",
            )  # fmt: skip
            self.negative = gr.Textbox(
                label="Negative prompt", max_length=500, visible=self.distills, elem_id=f"{name}-negative"
            )

    def presets(self, prior: str) -> tuple[Preset, ...]:
        """Return the presets of a prior."""
        return self.model_cache.priors[prior].presets_for(self.kind) if self.distills else RECONSTRUCTION_PRESETS

    @property
    def inputs(self) -> list[gr.components.Component]:
        """Components whose values the event handlers get, in this order."""
        return [
            self.prior,
            self.preset,
            self.seed,
            self.randomize,
            self.steps,
            self.guidance,
            self.stride,
            self.negative,
        ]

    def settings_of(self, prior: str, preset: str, steps: float | None, guidance: Any, stride: Any) -> dict[str, Any]:
        """Return fields of `HiFAConfig` from the entered values.

        If the fallback replaces the prior, the fields are those of the fallback's preset at the same position. The
        entered guidance and stride are then ignored. The entered number of steps is kept only if it differs from the
        number of the chosen preset.

        Raises:
            ValueError: If the number of steps is out of range, a value is not a number, or the preset or prior is
                unknown.
        """
        used = self.model_cache.get_or_fall_back(prior)[0] if self.distills else prior
        if used != prior:
            own = {p.name: p.steps for p in self.presets(prior)}
            steps = None if steps == own.get(preset) else steps
            prior, preset, guidance, stride = used, self.model_cache.preset_in_place(prior, used, preset), None, None
        return settings_of({p.name: p for p in self.presets(prior)}, preset, steps, guidance, stride)

    def refreshed(self, prior: str | None = None, name: str | None = None, steps: float | None = None) -> gr.Radio:
        """Return the preset control with a current time estimate, by default for the initial values."""
        prior = prior or self.first.key
        preset = self._preset(prior, name)
        return gr.Radio(info=self.estimate(prior, preset, steps or preset.steps))

    def restored(self, request: Request) -> list[Any]:
        """Return the values of `inputs` for a stored request. The seed is fixed, so that the run can be repeated.

        For a prior that the app no longer offers, return the values of the default prior.
        """
        key = request.prior if request.prior in self.model_cache.priors else self.first.key
        presets, asked = self.presets(key), request.settings
        steps = asked.get("num_inference_steps")
        own = {"num_inference_steps", *ADVANCED}  # settings with their own controls
        # Stored requests went through JSON, so the presets must, too.
        alike = [p for p in presets if all(asked.get(k) == v for k, v in _read_back(p).items() if k not in own)]
        alike = alike or list(presets)
        preset = next((p for p in alike if p.steps == steps), alike[min(1, len(alike) - 1)])
        steps = steps or preset.steps
        own_values = {name: asked[name] for name in ADVANCED if name in asked}
        typed = [
            f"{own_values[name]:g}" if own_values.get(name) not in (None, preset.settings.get(name)) else ""
            for name in ADVANCED
        ]
        return [
            gr.update(value=key, info=about(self.model_cache, self.model_cache.priors[key])),
            gr.Radio([p.name for p in presets], value=preset.name, info=self.estimate(key, preset, steps)),
            request.seed, False, steps, *typed, request.negative_prompt,
        ]  # fmt: skip

    def wire(self) -> None:
        """Connect the events within the controls."""
        quiet: dict[str, Any] = {"queue": False, "show_progress": "hidden", "api_visibility": "private"}
        if self.distills:
            self.prior.input(self._on_prior, self.prior, [self.prior, self.preset, self.steps], **quiet)
        self.preset.input(self._on_preset, [self.prior, self.preset], [self.preset, self.steps], **quiet)
        self.steps.input(self._on_steps, [self.prior, self.preset, self.steps], self.preset, **quiet)

    def _on_prior(self, key: str):
        presets = self.presets(key)
        default = presets[min(1, len(presets) - 1)]
        preset = gr.Radio(
            [p.name for p in presets], value=default.name, info=self.estimate(key, default, default.steps)
        )
        return gr.Dropdown(info=about(self.model_cache, self.model_cache.priors[key])), preset, default.steps

    def _on_preset(self, prior: str, name: str):
        preset = self._preset(prior, name)
        return gr.Radio(info=self.estimate(prior, preset, preset.steps)), preset.steps

    def _on_steps(self, prior: str, name: str, steps: float | None):
        return gr.Radio(info=self.estimate(prior, self._preset(prior, name), steps))

    def _preset(self, prior: str, name: str | None) -> Preset:
        """Return the preset of a prior by name; for any other name, return the default preset."""
        presets = self.presets(prior)
        return next((p for p in presets if p.name == name), presets[min(1, len(presets) - 1)])

    def estimate(self, prior: str, preset: Preset, steps: float | None) -> str:
        """Return a text with the expected duration of a run, from the times measured on this machine."""
        key = work_key(self.kind, prior if self.distills else "", preset.settings)
        step_seconds, steps = self.timings.get(key), int(steps or 0)
        quota = f" {QUOTA}" if self.zero and self.model_cache.priors[prior].needs_gpu else ""
        if step_seconds is None:
            return f"{steps:,} steps. Their duration here is known after the first run.{quota}"
        return f"{steps:,} steps, about {clock(steps * step_seconds)}, as measured here.{quota}"


def settings_of(presets: dict[str, Preset], preset: str, steps: Any, guidance: Any, stride: Any) -> dict[str, Any]:
    """Return fields of `HiFAConfig` from a preset and the entered values that differ from the preset.

    Args:
        presets: Presets by name.
        preset: Name of a preset.
        steps: Number of steps; `None` for the number of the preset.
        guidance: Entered guidance scale; empty or `None` for the value of the preset.
        stride: Entered denoising stride; empty or `None` for the value of the preset.

    Raises:
        ValueError: If the number of steps is out of range, a value is not a number, or the preset is unknown.
    """
    if preset not in presets:
        raise ValueError(f"Unknown preset {preset!r}. Choose one of {', '.join(presets)}.")
    steps = presets[preset].steps if steps is None else steps
    if not MIN_STEPS <= steps <= MAX_STEPS or int(steps) != steps:
        raise ValueError(f"Steps must be a whole number from {MIN_STEPS} to {MAX_STEPS:,}, got {steps:g}.")
    settings = presets[preset].settings | {"num_inference_steps": int(steps)}
    for name, typed in (("guidance_scale", guidance), ("denoising_stride", stride)):
        if typed is not None and str(typed).strip():
            try:
                settings[name] = float(typed)
            except ValueError as error:
                raise ValueError(f"{name} must be a number, got {typed!r}.") from error
    return settings


def _read_back(preset: Preset) -> dict[str, Any]:
    return json.loads(json.dumps(preset.settings))


def about(model_cache: ModelCache, prior: Prior) -> str:
    """Return the requirements and the license of a prior, and why the fallback replaces the prior, if known."""
    problem = model_cache.problem(prior.key)
    notice = (
        f" **It cannot be loaded now: {problem}. {model_cache.fallback.name} is used instead.**" if problem else ""
    )
    return f"It {prior.needs}. License: [{prior.license}]({prior.license_url}).{notice}"
