"""The variational score of VSD: its gradient, what it learns, the prior it leaves alone, its way through a file."""

import copy
import sys

import pytest
import torch
from accelerate import cpu_offload
from diffusers import UNet2DConditionModel
from peft import LoraConfig

from hifa import HiFAPipeline, HiFARun
from hifa.cameras import Camera, camera_to_world
from hifa.optimization.distillation import Views, distillation_loss, make_distiller
from hifa.optimization.run import RunError
from hifa.priors.prompt_guidance import unguided
from hifa.priors.vsd import VariationalScore, VariationalState, denoising_loss
from tests.helpers.published import SMALL, build_if
from tests.helpers.runs import TINY, VSD, finish, generator
from tests.helpers.scores import score_by_diffusers, view


SIDE = Camera(90, 15)
FRONT = Camera(0, 15)


@pytest.fixture(scope="module", params=["tiny_prior", "tiny_v_prior"])
def pipe(request):
    pipe = HiFAPipeline.from_pretrained(request.getfixturevalue(request.param))
    pipe.set_progress_bar_config(disable=True)
    return pipe


def start(pipe, **settings) -> HiFARun:
    return pipe.start("a red ball", config=TINY, generator=generator(), **VSD | settings)


def taught(pipe, **settings) -> HiFARun:
    """A run whose variational score is far from the prior."""
    run = start(pipe, **settings)
    for number, value in enumerate(run.variational.parameters.values()):
        value.data.normal_(std=0.5, generator=generator(number))
    return run


def merged(unet: UNet2DConditionModel, state: VariationalState, camera: Camera) -> UNet2DConditionModel:
    """A copy with B A added to the weights and the camera's embedding to the bias that ends the embedding of time."""
    unet, p = copy.deepcopy(unet), {name: value.detach() for name, value in state.parameters.items()}
    for name in (name.removesuffix(".lora_A") for name in p if name.endswith("lora_A")):
        unet.get_submodule(name).weight.data += p[f"{name}.lora_B"] @ p[f"{name}.lora_A"]
    pose = torch.tensor(camera_to_world(camera).tolist()).view(12)
    hidden = torch.nn.functional.silu(p["camera.0.weight"] @ pose + p["camera.0.bias"])
    unet.time_embedding.linear_2.bias.data += p["camera.1.weight"] @ hidden + p["camera.1.bias"]
    return unet


def snapshot(unet: UNet2DConditionModel) -> dict:
    """All that must be the same before and after: modules, keys, values, and how they are set."""
    values = {key: value.clone() for key, value in unet.state_dict().items()}
    modules = {name: (id(part), part.training, len(part._forward_hooks)) for name, part in unet.named_modules()}
    learning = {name: value.requires_grad for name, value in unet.named_parameters()}
    return {"values": values, "modules": modules, "learning": learning}


def assert_untouched(unet: UNet2DConditionModel, before: dict) -> None:
    after = snapshot(unet)
    assert list(after["values"]) == list(before["values"])
    assert all(torch.equal(before["values"][key], value) for key, value in after["values"].items())
    assert after["modules"] == before["modules"] and after["learning"] == before["learning"]
    assert all(p.grad is None for p in unet.parameters()) and not getattr(unet, "peft_config", None)


@pytest.mark.parametrize("camera", [FRONT, SIDE])
@pytest.mark.parametrize("t", [20, 500, 980])
def test_its_noise_is_that_of_a_unet_with_merged_weights(pipe, t, camera):
    run, prior = taught(pipe), pipe.make_prior()
    z_t, prompt = torch.randn(1, 4, 8, 8, generator=generator(1)), unguided(run.embeddings[[3]])
    with torch.no_grad():
        actual = VariationalScore(prior, run.variational).predict_noise(z_t, t, prompt, camera)
        prior.unet = merged(pipe.unet, run.variational, camera)
        expected = prior.predict_noise(z_t, t, prompt)
        plain = pipe.make_prior().predict_noise(z_t, t, prompt)
    torch.testing.assert_close(actual, expected, rtol=1e-3, atol=1e-3)
    assert (expected - plain).abs().max() > 1e-2


def test_it_begins_as_the_prior_itself(pipe):
    run, prior = start(pipe), pipe.make_prior()
    z_t, prompt = torch.randn(1, 4, 8, 8, generator=generator(1)), unguided(run.embeddings[[2]])
    with torch.no_grad():
        ours = VariationalScore(prior, run.variational).predict_noise(z_t, 600, prompt, FRONT)
        theirs = prior.predict_noise(z_t, 600, prompt)
    assert torch.equal(ours, theirs)
    other, again = start(pipe, lora_rank=2), start(pipe)
    assert all(torch.equal(a, again.variational.parameters[n]) for n, a in run.variational.parameters.items())
    assert {a.shape[0] for n, a in other.variational.parameters.items() if n.endswith("lora_A")} == {2}


@pytest.mark.parametrize("t", [20, 500, 980])
def test_vsd_is_the_published_gradient(pipe, t):
    """w(t) (eps_hat - eps_phi) dz/dx with w(t) = sigma_t^2 up to the factor of the settings."""
    run = taught(pipe, sds_weight=0.3, lambda_rgb=0.0)
    run.generator.manual_seed(5)
    prior, x = pipe.make_prior(), view()
    seen = Views(x, prior.encode(x), t, (FRONT,))
    distillation_loss(run.config, seen, make_distiller(run, prior).target(seen)).backward()
    x_there, z, epsilon, noise, alpha, sigma = score_by_diffusers(pipe, t, 7.5)
    z_t = pipe.scheduler.add_noise(z.detach(), noise, torch.tensor([t]))
    with torch.no_grad():
        unet = merged(pipe.unet, run.variational, FRONT)
        output = unet(z_t, t, encoder_hidden_states=pipe.encode_prompt("a red ball").tokens[[2]]).sample
    v = pipe.scheduler.config.prediction_type == "v_prediction"
    epsilon_phi = alpha * output + sigma * z_t if v else output
    (expected,) = torch.autograd.grad(z, x_there, 0.3 * sigma**2 * (epsilon - epsilon_phi))
    torch.testing.assert_close(x.grad, expected, rtol=1e-2, atol=2e-3 * expected.abs().max())


def test_image_space_term_is_that_between_the_two_estimates(pipe):
    t, run = 400, taught(pipe, sds_weight=0.3, lambda_latent=0.0, lambda_rgb=0.2)
    run.generator.manual_seed(5)
    prior, x = pipe.make_prior(), view()
    seen = Views(x, prior.encode(x), t, (FRONT,))
    distillation_loss(run.config, seen, make_distiller(run, prior).target(seen)).backward()
    _, z, epsilon, noise, alpha, sigma = score_by_diffusers(pipe, t, 7.5)
    z_t = alpha * z.detach() + sigma * noise
    with torch.no_grad():
        prior.unet = merged(pipe.unet, run.variational, FRONT)
        own = prior.predict_noise(z_t, t, unguided(run.embeddings[[2]]))
        images = [prior.decode((z_t - sigma * value) / alpha) for value in (own, epsilon)]
    expected = 0.3 * alpha * sigma * 0.2 * (images[0] - images[1])
    torch.testing.assert_close(x.grad, expected, rtol=1e-2, atol=2e-3 * expected.abs().max())


def test_losses_of_noise_and_velocity():
    """V = alpha eps - sigma z; both kinds of error are of one and the same prediction at one and the same z_t."""
    z, noise, predicted = (torch.randn(1, 4, 8, 8, generator=generator(seed)) for seed in range(3))
    alpha, sigma = 0.3**0.5, 0.7**0.5
    z_t = alpha * z + sigma * noise
    z_phi = (z_t - sigma * predicted) / alpha
    v, v_phi = alpha * noise - sigma * z, alpha * predicted - sigma * z_phi
    for prediction, error in (("epsilon", predicted - noise), ("v_prediction", v_phi - v)):
        loss = denoising_loss(predicted, noise, 0.3, prediction)
        assert loss.item() == pytest.approx(error.square().mean().item(), rel=1e-4)


def test_pure_noise_teaches_nothing_and_breaks_nothing():
    """With zero terminal SNR alpha is 0 at the last timestep, and eps_phi is z_t, which is the noise."""
    noise = torch.randn(1, 4, 8, 8, generator=generator(0))
    predicted = noise.clone().requires_grad_()
    loss = denoising_loss(predicted, noise, 0.0, "v_prediction")
    loss.backward()
    assert loss.item() == 0 and torch.equal(predicted.grad, torch.zeros_like(predicted))


@pytest.mark.parametrize("prediction", ["epsilon", "v_prediction"])
def test_its_gradient_is_that_of_finite_differences(pipe, prediction):
    """In float64, in all parameters at once, along a random direction; a step that goes nowhere tells loss and
    gradient.
    """
    run, prior = taught(pipe), pipe.make_prior()
    prior.unet = copy.deepcopy(pipe.unet).double()
    z = torch.randn(1, 4, 8, 8, generator=generator(1), dtype=torch.float64)
    values = {name: value.double() for name, value in run.variational.tensors().items()}
    along = {name: torch.randn(value.shape, generator=generator(9)).double() / 30 for name, value in values.items()}

    def at(shift: float) -> tuple[float, VariationalState]:
        moved = VariationalState({name: value + shift * along[name] for name, value in values.items()}, 0.0)
        prompt = unguided(run.embeddings[[2]])
        return VariationalScore(prior, moved).learn(z, prompt, FRONT, prediction, generator(4)).item(), moved

    (up, _), (down, _), (_, here) = (at(shift) for shift in (1e-4, -1e-4, 0.0))
    slope = sum((here.parameters[name].grad * along[name]).sum().item() for name in along) / z.numel()
    assert slope == pytest.approx((up - down) / 2e-4, rel=1e-5) and abs(slope) > 1e-5
    assert all(torch.equal(values[name], value) for name, value in here.parameters.items()), "a rate of 0"


def test_it_learns_one_picture_from_one_side(v_pipe):
    """Shown one latent again and again it denoises it better than the prior does, the better if told the camera."""
    run, prior = start(v_pipe), v_pipe.make_prior()
    score, z = VariationalScore(prior, run.variational), 2 * torch.randn(1, 4, 8, 8, generator=generator(1)).sign()
    prompt, drawn = unguided(run.embeddings[[2]]), generator(2)

    def error(camera: Camera) -> float:
        z_t, noise = prior.noisy(z, 500, generator(3))
        with torch.no_grad():
            return torch.nn.functional.mse_loss(score.predict_noise(z_t, 500, prompt, camera), noise).item()

    before = error(FRONT)
    for _ in range(400):
        score.learn(z, prompt, FRONT, "epsilon", drawn)
    assert error(FRONT) < 0.9 * before and error(FRONT) < 0.98 * error(Camera(180, 15))


def test_every_step_learns_and_says_how(pipe):
    run = start(pipe)
    before = {name: value.detach().clone() for name, value in run.variational.parameters.items()}
    steps = list(pipe.advance(run))
    for step in steps:
        terms = {k: v for k, v in step.losses.items() if k not in ("loss", "variational")}
        assert step.losses["loss"] == pytest.approx(sum(terms.values()), rel=1e-4) and step.losses["variational"] > 0
    moved = [name for name, value in run.variational.parameters.items() if not torch.equal(before[name], value)]
    assert any(name.endswith("lora_A") for name in moved) and "camera.0.weight" in moved and "camera.1.bias" in moved
    assert all(name in moved for name in before if name.endswith("lora_B"))


def test_a_run_leaves_the_prior_as_it_was(pipe):
    before, random = snapshot(pipe.unet), torch.get_rng_state()
    run = start(pipe)
    assert_untouched(pipe.unet, before)
    for _ in pipe.advance(run):  # between any two steps as well
        assert_untouched(pipe.unet, before)
    assert_untouched(pipe.unet, before)
    assert torch.equal(torch.get_rng_state(), random)


@pytest.mark.parametrize("error", [RuntimeError, KeyboardInterrupt])
@pytest.mark.parametrize("calls", [0, 1, 2, 3])
def test_a_step_that_fails_leaves_the_prior_as_it_was(v_pipe, error, calls):
    """In the guided call of the UNet, in that of eps_phi, in the one that it learns by, or in the next step."""
    before, seen = snapshot(v_pipe.unet), []

    def fail(*_):
        if len(seen) == calls:
            raise error("in the middle")
        seen.append(True)

    run = start(v_pipe)
    hook = v_pipe.unet.mid_block.register_forward_hook(fail)
    try:
        with pytest.raises(error):
            finish(v_pipe, run)
    finally:
        hook.remove()
    assert_untouched(v_pipe.unet, before)
    # And it can go on, as can others.
    assert finish(v_pipe, run).finished and finish(v_pipe, start(v_pipe)).finished


def test_a_failing_optimizer_or_a_reader_that_goes_away_leave_it_too(v_pipe, monkeypatch):
    before, run = snapshot(v_pipe.unet), start(v_pipe)
    stream = v_pipe.advance(run)
    next(stream)  # kept open
    assert_untouched(v_pipe.unet, before)
    monkeypatch.setattr(run.variational.optimizer, "step", lambda: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        next(stream)
    assert_untouched(v_pipe.unet, before)


def test_runs_can_take_turns(v_pipe):
    alone = [finish(v_pipe, start(v_pipe, sds_weight=weight)) for weight in (0.01, 0.02)]
    turns = [start(v_pipe, sds_weight=weight) for weight in (0.01, 0.02)]
    for _ in zip(*(v_pipe.advance(run) for run in turns), strict=True):
        pass
    for first, second in zip(alone, turns, strict=True):
        assert first.losses == second.losses


def state(run: HiFARun) -> torch.Tensor:
    values = [*run.radiance_field.state_dict().values(), *run.variational.parameters.values()]
    for optimizer in (run.optimizer, run.variational.optimizer):
        for row in optimizer.state_dict()["state"].values():
            values += [row[name] for name in sorted(row)]
    return torch.cat([value.detach().flatten().float() for value in values])


@pytest.mark.parametrize("stop_after", [0, 1, 2])
def test_a_loaded_run_goes_on_bit_for_bit(v_pipe, tmp_path, stop_after):
    whole = finish(v_pipe, start(v_pipe, lora_prediction="v_prediction"))
    run = start(v_pipe, lora_prediction="v_prediction")
    list(v_pipe.advance(run, steps=stop_after))
    run.save(tmp_path)
    resumed = HiFARun.load(tmp_path)
    assert torch.equal(state(run), state(resumed))
    resumed = finish(v_pipe, resumed)
    assert torch.equal(state(whole), state(resumed)) and resumed.losses == whole.losses


def test_a_saved_run_without_its_score_or_of_another_model_is_refused(v_pipe, tmp_path, monkeypatch):
    run = start(v_pipe)
    run.save(tmp_path / "whole")
    other = copy.copy(v_pipe)
    config = dict(v_pipe.unet.config) | {"block_out_channels": (8, 8)}
    other.unet = UNet2DConditionModel.from_config(config).requires_grad_(False)
    with pytest.raises(ValueError, match="do not fit the UNet"):
        next(other.advance(HiFARun.load(tmp_path / "whole")))
    run.variational = None
    run.save(tmp_path / "part")
    with pytest.raises(RunError, match="variational"):
        HiFARun.load(tmp_path / "part")


def test_adapters_of_the_users_own_are_refused_and_kept(tiny_v_prior):
    pipe = HiFAPipeline.from_pretrained(tiny_v_prior)
    run = start(pipe)
    pipe.unet.add_adapter(LoraConfig(r=2, target_modules=["to_q"]), "mine")
    for begin in (lambda: start(pipe), lambda: next(pipe.advance(run))):
        with pytest.raises(ValueError, match="without adapters, but the UNet has mine"):
            begin()
    assert list(pipe.unet.peft_config) == ["mine"]


def test_without_peft_it_is_told_at_once(v_pipe, monkeypatch):
    monkeypatch.setitem(sys.modules, "peft", None)
    with pytest.raises(ValueError, match=r"needs peft: pip install 'hifa\[vsd\]'"):
        start(v_pipe)
    assert finish(v_pipe, start(v_pipe, distillation="sds")).variational is None


def test_a_unet_without_attention_is_refused(v_pipe):
    other = copy.copy(v_pipe)
    blocks = {"down_block_types": ("DownBlock2D",) * 2, "up_block_types": ("UpBlock2D",) * 2, "mid_block_type": None}
    other.unet = UNet2DConditionModel.from_config(dict(v_pipe.unet.config) | blocks)
    with pytest.raises(ValueError, match="the UNet has none"):
        start(other)


def test_deepfloyd_if_has_projections_of_its_own_and_no_image_space(tmp_path):
    build_if().save_pretrained(tmp_path)
    pipe = HiFAPipeline.from_pretrained(tmp_path)
    before = snapshot(pipe.unet)
    run = pipe.start("a red ball", seed=0, **SMALL | VSD)
    assert sum("add_k_proj.lora_A" in name for name in run.variational.parameters) > 0
    initial = {name: value.detach().clone() for name, value in run.variational.parameters.items()}
    assert all(torch.isfinite(torch.tensor(step.losses["variational"])) for step in pipe.advance(run))
    moved = [name for name, value in run.variational.parameters.items() if not torch.equal(initial[name], value)]
    assert {name for name in initial if name.endswith("lora_B")} <= set(moved)
    assert_untouched(pipe.unet, before)


def test_model_offload(tiny_v_prior, v_pipe):
    pipe = HiFAPipeline.from_pretrained(tiny_v_prior)
    pipe.enable_model_cpu_offload(device="cpu")
    for offloaded, plain in zip(finish(pipe, start(pipe)).losses, finish(v_pipe, start(v_pipe)).losses, strict=True):
        assert offloaded == pytest.approx(plain, rel=1e-3)


def test_layers_on_the_meta_device_between_their_calls(tiny_v_prior, v_pipe):
    """As `enable_sequential_cpu_offload` leaves them, see `test_low_memory`: the adapted ones bring their weights."""
    pipe = HiFAPipeline.from_pretrained(tiny_v_prior)
    cpu_offload(pipe.unet, torch.device("cpu"))
    for offloaded, plain in zip(finish(pipe, start(pipe)).losses, finish(v_pipe, start(v_pipe)).losses, strict=True):
        assert offloaded == pytest.approx(plain, rel=1e-3)
    assert {value.device.type for value in pipe.unet.parameters()} == {"meta"}


def test_half_precision_and_inference_mode(tiny_v_prior):
    half = HiFAPipeline.from_pretrained(tiny_v_prior, dtype=torch.bfloat16)
    with torch.inference_mode():
        run = start(half)
        losses = [step.losses for step in half.advance(run)]
    assert all(torch.isfinite(torch.tensor([row["loss"], row["variational"]])).all() for row in losses)
    assert {value.dtype for value in run.variational.parameters.values()} == {torch.float32}


def test_a_run_of_given_views_has_no_score(v_pipe):
    from tests.helpers.views import shades

    run = v_pipe.start(None, views=shades(), config=TINY, generator=generator(), distillation="vsd")
    assert run.variational is None and finish(v_pipe, run).finished
