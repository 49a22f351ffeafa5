"""HiFAPipeline on tiny random Stable Diffusion folders: diffusers' conventions, determinism, errors."""

import os
import signal

import numpy as np
import PIL.Image
import pytest
import torch
from diffusers import StableDiffusionPipeline

from hifa import HiFAConfig, HiFAPipeline, HiFARun
from hifa.cameras import VIEWS
from hifa.optimization.interrupt import Interrupted
from hifa.optimization.step import draw_camera
from hifa.storage.run_folder import RunError, is_saved_in
from tests.helpers.runs import TINY, generator


@pytest.fixture(scope="module")
def pipe(tiny_prior):
    pipe = HiFAPipeline.from_pretrained(tiny_prior)
    pipe.set_progress_bar_config(disable=True)
    return pipe


def final_parameters(pipe, **changes):
    run = pipe.start("a red ball", config=TINY, generator=generator(), **changes)
    for _ in pipe.advance(run):
        pass
    return torch.cat([p.detach().flatten() for p in run.radiance_field.parameters()])


def test_loads_a_stock_folder_that_diffusers_wrote(tiny_prior):
    stock = StableDiffusionPipeline.from_pretrained(tiny_prior)
    ours = HiFAPipeline.from_pretrained(tiny_prior)
    for name in ("vae", "unet", "text_encoder"):
        theirs = getattr(stock, name).state_dict()
        assert all(torch.equal(theirs[key], value) for key, value in getattr(ours, name).state_dict().items())


def test_a_text_encoder_of_another_model_is_refused_at_load(tiny_prior, tmp_path):
    stock = StableDiffusionPipeline.from_pretrained(tiny_prior)
    config = dict(stock.unet.config) | {"cross_attention_dim": 24}
    stock.unet = type(stock.unet).from_config(config)
    stock.save_pretrained(tmp_path)
    with pytest.raises(ValueError, match="expects text embeddings of width 24, but the text encoder returns width 16"):
        HiFAPipeline.from_pretrained(tmp_path)


def test_save_and_load(pipe, tmp_path):
    pipe.save_pretrained(tmp_path)
    again = HiFAPipeline.from_pretrained(tmp_path)
    again.set_progress_bar_config(disable=True)
    assert torch.equal(final_parameters(pipe), final_parameters(again))


def test_same_seed_same_result_and_other_seed_other_result(pipe):
    first = final_parameters(pipe)
    assert torch.equal(first, final_parameters(pipe))
    run = pipe.start("a red ball", config=TINY, generator=generator(1))
    assert not torch.equal(first, torch.cat([p.detach().flatten() for p in run.radiance_field.parameters()]))


def test_global_random_state_is_not_touched(pipe):
    before = torch.get_rng_state()
    final_parameters(pipe)
    assert torch.equal(before, torch.get_rng_state())


def test_v_prediction_runs_and_differs_from_epsilon(pipe, tiny_v_prior):
    v_pipe = HiFAPipeline.from_pretrained(tiny_v_prior)
    assert v_pipe.scheduler.config.prediction_type == "v_prediction"
    parameters = final_parameters(v_pipe)
    assert torch.isfinite(parameters).all() and not torch.equal(parameters, final_parameters(pipe))


def test_prior_is_left_as_it_was(pipe):
    before = {key: value.clone() for key, value in pipe.unet.state_dict().items()}
    final_parameters(pipe)
    assert all(torch.equal(before[key], value) for key, value in pipe.unet.state_dict().items())
    assert all(p.grad is None for model in (pipe.unet, pipe.vae, pipe.text_encoder) for p in model.parameters())


@pytest.mark.parametrize("output_type, kind", [("pil", list), ("np", np.ndarray), ("pt", torch.Tensor)])
def test_output_types_and_return_dict(pipe, output_type, kind):
    output = pipe(
        "a red ball", config=TINY, generator=generator(), num_frames=2, frame_size=8, output_type=output_type
    )
    assert isinstance(output.images[0], kind) and len(output.images[0]) == 2
    if output_type == "pil":
        assert isinstance(output.images[0][0], PIL.Image.Image) and output.images[0][0].size == (8, 8)
    else:
        assert tuple(output.images[0].shape) == (2, 8, 8, 3)
    plain = pipe(
        "a red ball",
        config=TINY,
        generator=generator(),
        num_frames=2,
        frame_size=8,
        output_type="np",
        return_dict=False,
    )
    assert isinstance(plain, tuple) and plain[1][0].prompt == "a red ball"
    assert output[0] is output.images


def test_lists_of_prompts_equal_single_calls(pipe):
    both = pipe(
        ["a red ball", "a blue cube"],
        config=TINY,
        generator=[generator(0), generator(1)],
        num_frames=1,
        output_type="np",
    )
    alone = pipe("a blue cube", config=TINY, generator=generator(1), num_frames=1, output_type="np")
    assert np.array_equal(both.images[1], alone.images[0])
    with pytest.raises(ValueError, match="generator has 1 entries for 2 prompts"):
        pipe(["a red ball", "a blue cube"], config=TINY, generator=[generator(0)])


def test_callback_sees_every_step_and_can_interrupt(pipe):
    seen = []

    def callback(pipeline, step, timestep, tensors):
        seen.append((step, timestep, tuple(tensors["image"].shape)))
        pipeline._interrupt = step == 1
        return tensors

    output = pipe("a red ball", config=TINY, generator=generator(), callback_on_step_end=callback, num_frames=1)
    assert [step for step, _, _ in seen] == [0, 1]
    assert seen[0][1] == 980 and seen[0][2] == (8, 8, 3)
    assert output.runs[0].step == 2 and pipe.num_timesteps == 3
    with pytest.raises(ValueError, match="latents"):
        pipe("a red ball", callback_on_step_end_tensor_inputs=["latents"])


def test_a_callback_can_replace_the_embeddings(pipe):
    seen = []

    def callback(pipeline, step, timestep, tensors):
        seen.append(tensors["prompt_embeds"])
        return {"prompt_embeds": 2 * tensors["prompt_embeds"]}

    options = {"callback_on_step_end": callback, "callback_on_step_end_tensor_inputs": ["prompt_embeds"]}
    output = pipe("a red ball", config=TINY, generator=generator(), num_frames=1, **options)
    assert torch.equal(seen[1], 2 * seen[0]) and torch.equal(output.runs[0].embeddings.tokens, 8 * seen[0])


def test_an_interrupt_ends_a_list_of_prompts(pipe):
    def callback(pipeline, step, timestep, tensors):
        pipeline._interrupt = pipeline.current_run.prompt == "a blue cube"
        return tensors

    prompts = ["a red ball", "a blue cube", "a green duck"]
    output = pipe(prompts, config=TINY, callback_on_step_end=callback, num_frames=1)
    assert [(run.prompt, run.step) for run in output.runs] == [("a red ball", 3), ("a blue cube", 1)]
    assert len(output.images) == len(output.assets) == 2


def test_a_run_is_saved_while_it_goes_on(pipe, tmp_path):
    saved = []

    def callback(pipeline, step, timestep, tensors):
        saved.append(HiFARun.load(tmp_path / "run").step if is_saved_in(tmp_path / "run") else 0)
        return tensors

    inputs = {"config": TINY, "num_frames": 1, "save_dir": tmp_path / "run", "save_every": 2}
    pipe("a red ball", **inputs, callback_on_step_end=callback)
    assert saved == [0, 2, 2] and HiFARun.load(tmp_path / "run").step == 3
    pipe(["a red ball", "a blue cube"], **inputs | {"save_dir": tmp_path / "runs"})
    prompts = [HiFARun.load(tmp_path / "runs" / name).prompt for name in ("0000-a-red-ball", "0001-a-blue-cube")]
    assert prompts == ["a red ball", "a blue cube"]


def test_an_error_in_a_run_loses_nothing(pipe, tmp_path):
    def callback(pipeline, step, timestep, tensors):
        if step == 1:
            raise RuntimeError("no")
        return tensors

    inputs = {"config": TINY, "generator": generator(), "num_frames": 1, "save_dir": tmp_path}
    with pytest.raises(RuntimeError, match="no"):
        pipe("a red ball", **inputs, callback_on_step_end=callback)
    assert pipe.current_run.step == 2
    run = HiFARun.load(tmp_path)
    assert run.step == 2
    list(pipe.advance(run))
    parameters = torch.cat([p.detach().flatten() for p in run.radiance_field.parameters()])
    assert torch.equal(parameters, final_parameters(pipe))
    pipe.start("a red ball", config=TINY).save(tmp_path)
    with pytest.raises(RunError, match="holds an unfinished run .0 of 3 steps."):
        pipe("a red ball", **inputs)


def test_ctrl_c_waits_for_the_step_and_the_second_one_does_not(pipe, interruptible, tmp_path, monkeypatch):
    def press(step):
        os.kill(os.getpid(), signal.SIGINT)

    run = pipe.start("a red ball", config=TINY)
    with pytest.raises(Interrupted):
        pipe.run_to_end(run, tmp_path, on_step=press)
    assert HiFARun.load(tmp_path).step == 1

    def press_twice(*_, **__):
        press(None)
        press(None)
        raise AssertionError("went on after the second Ctrl-C")

    monkeypatch.setattr("hifa.optimization.loop.optimization_step", press_twice)
    with pytest.raises(KeyboardInterrupt) as caught:
        pipe.run_to_end(run, tmp_path)
    assert caught.type is KeyboardInterrupt and HiFARun.load(tmp_path).step == 1
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler


def test_streaming_in_parts_equals_one_go(pipe):
    run = pipe.start("a red ball", config=TINY, generator=generator())
    steps = [s.step for s in pipe.advance(run, steps=2)] + [s.step for s in pipe.advance(run)]
    assert steps == [1, 2, 3] and run.finished and len(run.losses) == 3
    parameters = torch.cat([p.detach().flatten() for p in run.radiance_field.parameters()])
    assert torch.equal(parameters, final_parameters(pipe))


def test_runs_inside_inference_mode(pipe):
    with torch.inference_mode():
        run = pipe.start("a red ball", config=TINY, generator=generator())
        assert len(list(pipe.advance(run))) == 3


def test_losses_are_reported_with_their_sum(pipe):
    run = pipe.start("a red ball", config=TINY, generator=generator())
    losses = next(pipe.advance(run)).losses
    assert set(losses) == {"sds", "z_variance", "opacity", "entropy", "loss"}
    assert losses["loss"] == pytest.approx(sum(losses.values()) - losses["loss"], rel=1e-5)


def test_prompt_embeddings_are_negative_plain_then_views(pipe):
    embeddings = pipe.encode_prompt("a red ball", "a blue cube")
    assert len(embeddings) == 2 + len(VIEWS)
    texts = ["a blue cube", "a red ball", *(f"a red ball, {view}" for view in VIEWS)]
    for tokens, text in zip(embeddings.tokens, texts, strict=True):
        torch.testing.assert_close(tokens, pipe.encode_prompt("a green duck", text).tokens[0])


def test_front_and_back_come_first(pipe):
    run = pipe.start("a red duck", seed=0, num_inference_steps=40, front_back_end=0.5)
    views = []
    for run.step in range(40):
        views.append(VIEWS[draw_camera(run).view])
    assert {"front view", "back view"} <= set(views[:20]) and "side view" not in views[:20]
    assert {"front view", "back view", "side view"} <= set(views[20:])


def test_view_guidance_changes_a_run(pipe):
    runs = [pipe.start("a red duck", seed=0, num_inference_steps=2, view_guidance=k) for k in (1.0, 1.0, 3.0)]
    losses = [list(pipe.advance(run))[-1].losses["sds"] for run in runs]
    assert losses[0] == losses[1] != losses[2]


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_prior(pipe, tiny_prior, dtype):
    half = HiFAPipeline.from_pretrained(tiny_prior, dtype=dtype)
    run = half.start("a red ball", config=TINY, generator=generator())
    assert all(np.isfinite(step.losses["loss"]) for step in half.advance(run))
    assert half.unet.dtype == half.vae.dtype == dtype and run.radiance_field.dtype == torch.float32


def test_model_offload_hooks(tiny_prior):
    pipe = HiFAPipeline.from_pretrained(tiny_prior)
    pipe.set_progress_bar_config(disable=True)
    pipe.enable_model_cpu_offload(device="cpu")
    output = pipe("a red ball", config=TINY, generator=generator(), num_frames=1, output_type="pt")
    assert torch.isfinite(output.images[0]).all()


@pytest.mark.parametrize(
    "arguments, error, words",
    [
        ({"prompt": ""}, ValueError, "prompt is empty"),
        ({"prompt": "   "}, ValueError, "prompt is empty"),
        ({"prompt": 3}, TypeError, "3"),
        ({"prompt": "a red zebra"}, ValueError, "'zebra'"),
        ({"prompt": "a photo of"}, ValueError, "'a photo of' names no object"),
        ({"prompt": "a red ball", "negative_prompt": "ugly"}, ValueError, "'ugly'"),
        ({"prompt": "a red ball", "negative_prompt": "a toy " * 20}, ValueError, "negative prompt has 42 tokens"),
        ({"prompt": "a red ball on " * 20 + "a cube"}, ValueError, "prompt with view words has"),
        ({"prompt": "a red ball", "num_inference_steps": 0}, ValueError, "num_inference_steps"),
        ({"prompt": "a red ball", "guidance_scale": float("nan")}, ValueError, "guidance_scale"),
        ({"prompt": "a red ball", "output_type": "gif"}, ValueError, "gif"),
        ({"prompt": "a red ball", "annealing": "cubed"}, ValueError, "cubed"),
        ({"prompt": "a red ball", "prompt_embeds": torch.zeros(6, 24, 8)}, ValueError, r"\(6, tokens, 16\).*24, 8"),
        ({"prompt": "a red ball", "save_every": 0}, ValueError, "save_every must be at least 1 step, got 0"),
        ({"prompt": "a red ball", "prompt_embeds": torch.zeros(24, 16)}, ValueError, r"got \(24, 16\)"),
    ],
)
def test_bad_input_is_refused_before_work(pipe, arguments, error, words):
    with pytest.raises(error, match=words):
        pipe(**arguments)


def test_unknown_word_error_helps(pipe):
    with pytest.raises(ValueError) as caught:
        pipe("a crimsom toadstol")
    message = str(caught.value)
    for helpful in ("crimsom", "crimson", "teddy bear", "purple", "from_pretrained"):
        assert helpful in message


def test_default_settings_follow_the_size_of_the_prior(pipe):
    assert pipe.image_size <= 64 and pipe.default_config() == HiFAConfig.fast(num_views=0, lambda_normal=0.0)
