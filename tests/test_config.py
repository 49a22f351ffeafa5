"""Settings: every bad value is refused by name, the presets are valid, and JSON keeps them."""

import json
import math
from dataclasses import fields, replace

import pytest

from hifa.config import HiFAConfig
from hifa.settings import settings_of


RANGES = [(s.name, s.low, s.high) for s in settings_of(HiFAConfig).values() if s.type in (int, float)]
PRESETS = {"paper": HiFAConfig.paper, "preview": HiFAConfig.preview, "fast": HiFAConfig.fast}
PRESETS["official"] = HiFAConfig.official
PRESETS["reconstruction"] = HiFAConfig.reconstruction
presets = pytest.mark.parametrize("preset", PRESETS.values(), ids=PRESETS)
NUMBERS = [f.name for f in fields(HiFAConfig) if isinstance(f.default, int | float)]
PAIRS = ["camera_radius", "camera_fov_deg", "camera_elevation_deg", "background_range"]


def refused(name: str, value, **others) -> str:
    """The message with which a value is refused; it must name the setting and the value."""
    with pytest.raises(ValueError) as error:
        HiFAConfig(**{name: value}, **others)
    message = str(error.value)
    assert name in message and str(value) in message and "\n" not in message
    return message


@pytest.mark.parametrize("name, low, high", RANGES, ids=[row[0] for row in RANGES])
def test_values_out_of_range_are_refused_by_name(name, low, high):
    for value in (low - 1, high + 1):
        message = refused(name, value)
        assert str(low) in message and str(high) in message, "the message says what is allowed"


def test_every_number_has_a_range():
    assert sorted(NUMBERS) == sorted(name for name, _, _ in RANGES)


@pytest.mark.parametrize("name", NUMBERS)
@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
def test_values_that_are_not_finite_are_refused_by_name(name, value):
    assert "finite" in refused(name, value)


@pytest.mark.parametrize("name", [*PAIRS, "kernel"])
@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_pairs_that_are_not_finite_are_refused_by_name(name, value):
    assert "finite" in refused(name, (1.0, value, 1.0) if name == "kernel" else (3.0, value))


@pytest.mark.parametrize("name", [*PAIRS, "kernel"])
def test_one_number_for_several_is_refused_by_name(name):
    for value in (3.0, 3, "3"):
        assert "tuple of numbers" in refused(name, value)


@pytest.mark.parametrize("name", NUMBERS)
def test_several_numbers_for_one_are_refused_by_name(name):
    refused(name, (64,))


def test_the_finest_cells_are_not_the_coarsest():
    refused("max_resolution", 64, base_resolution=128)
    assert HiFAConfig.reconstruction(given_size=8).max_resolution == 16


@pytest.mark.parametrize("name", PAIRS)
def test_pairs_are_pairs_in_order(name):
    low, high = getattr(HiFAConfig(), name)
    refused(name, (high, low))
    refused(name, (low,))
    refused(name, (low, high, high))


@pytest.mark.parametrize(
    "name, value",
    [
        ("camera_fov_deg", (0.0, 30.0)),  # the focal length of 0 degrees is infinite
        ("camera_fov_deg", (-10.0, 30.0)),
        ("camera_fov_deg", (10.0, 180.0)),
        ("camera_elevation_deg", (-100.0, 0.0)),
        ("camera_elevation_deg", (0.0, 91.0)),
        ("background_range", (-0.5, 1.0)),
        ("background_range", (0.0, 2.0)),
    ],
)
def test_pairs_out_of_range_are_refused(name, value):
    refused(name, value)


@pytest.mark.parametrize("name", [f.name for f in fields(HiFAConfig) if isinstance(f.default, int)])
def test_counts_are_whole_numbers(name):
    # Half a sample or step fails much later, and far from the mistake.
    refused(name, getattr(HiFAConfig(), name) + 0.5)


@pytest.mark.parametrize("name", ["num_inference_steps", "guidance_scale", "camera_radius"])
def test_text_is_refused_by_name(name):
    with pytest.raises((TypeError, ValueError), match=name):
        HiFAConfig(**{name: "many"})


def test_range_of_timesteps_must_be_in_order():
    message = refused("t_min", 0.8, t_max=0.5)
    assert "t_max=0.5" in message
    assert HiFAConfig(t_min=0.5, t_max=0.5).t_min == 0.5


@pytest.mark.parametrize("value", ["root", "", "SQRT"])
def test_unknown_annealing_is_refused_with_the_known_ones(value):
    message = refused("annealing", value)
    assert all(name in message for name in ("sqrt", "linear", "cosine", "random"))


@pytest.mark.parametrize(
    "name, value, known",
    [
        ("distillation", "SDS", ("hifa", "sds", "sjc", "vsd")),
        ("lora_prediction", "sample", ("epsilon", "v_prediction")),
        ("optimizer", "sgd", ("adam", "adan")),
        ("disparity_annealing", "", ("constant", "sqrt")),
    ],
)
def test_unknown_choices_are_refused_with_the_known_ones(name, value, known):
    message = refused(name, value)
    assert all(choice in message for choice in known)


@pytest.mark.parametrize("value", [(), (1.0, 1.0), (1.0, 2.0, 2.0, 1.0), (1.0, -1.0, 1.0), (0.0, 0.0, 0.0)])
def test_bad_kernels_are_refused(value):
    refused("kernel", value)


def test_cameras_must_stay_outside_of_the_cube():
    assert "bound=1.0" in refused("camera_radius", (0.9, 2.0))
    assert HiFAConfig(camera_radius=(1.5, 2.0)).camera_radius == (1.5, 2.0)


def test_unknown_settings_are_refused_by_name():
    with pytest.raises(TypeError, match="guidance_scael"):
        HiFAConfig(guidance_scael=7.5)


@presets
def test_presets_are_valid_and_take_changes(preset):
    config = preset()
    assert replace(config) == config
    assert preset(num_inference_steps=7).num_inference_steps == 7
    with pytest.raises(ValueError, match="eta"):
        preset(eta=2.0)


def test_paper_preset_has_the_numbers_of_appendix_a1():
    c = HiFAConfig.paper()
    assert c.grid_lr == 1e-2 and c.network_lr == 1e-3
    assert c.num_inference_steps == 10_000
    assert c.render_size == 512 and {c.render_size_at(step) for step in range(0, 10_000, 100)} == {512}
    assert c.denoising_stride == 0.25 and c.eta == 1
    assert c.lambda_rgb == 0.1 and c.lambda_zvar == 3 and c.lambda_latent == 1
    assert c.guidance_scale == 100 and c.guidance_rescale == 0
    # Sections 4.1 and 4.2: annealing by the square root, K = [1, 1, 1], z-variance from the start; nothing besides.
    assert c.annealing == "sqrt" and c.kernel == (1, 1, 1) and c.regularizer_warmup == 0
    assert c.lambda_opacity == c.lambda_entropy == 0 and c.density_grid == 0


def test_official_preset_has_the_numbers_of_the_public_code():
    c, paper = HiFAConfig.official(), HiFAConfig.paper()
    assert (c.optimizer, c.grid_lr, c.network_lr, c.max_gradient_norm) == ("adan", 5e-2, 5e-3, 1)
    assert c.lr_warmup * c.num_inference_steps == 500
    assert (c.perp_neg, c.t_max, c.t_min, c.guidance_scale) == (2, 0.98, 0.3, 100)
    assert (c.lambda_monotonic, c.lambda_zentropy, c.regularizer_warmup) == (1, 0.01, 0.5)
    for size in (64, 512, 1024):
        assert HiFAConfig.official(render_size=size).lambda_zvar == 3 * size**2
    assert c.lambda_entropy == pytest.approx(1.4427e-4, rel=1e-4)
    assert c.lambda_disparity == pytest.approx(0.1 * 0.05 * 65536)
    # In common: size, steps, weights of SDS+, denoising.
    for name in ("render_size", "num_inference_steps", "sds_weight", "lambda_rgb", "denoising_stride", "eta"):
        assert getattr(c, name) == getattr(paper, name)


def test_learning_rates_rise_then_fall():
    config = HiFAConfig(num_inference_steps=100, lr_warmup=0.1, lr_end=0.25)
    shares = [config.learning_rate_share(step) for step in range(101)]
    assert shares[0] == pytest.approx(0.1) and shares[4] == pytest.approx(0.5 * 0.25**0.04)
    assert shares[9:] == [
        HiFAConfig(num_inference_steps=100, lr_end=0.25).learning_rate_share(s) for s in range(9, 101)
    ]
    assert {HiFAConfig().learning_rate_share(step) for step in range(0, 10_000, 100)} == {1.0}


def test_weight_of_the_disparity_regression_falls_as_the_root():
    config = HiFAConfig(num_inference_steps=100, lambda_disparity=2.0, disparity_annealing="sqrt")
    assert [config.disparity_weight(step) for step in (0, 25, 100)] == [2, 1, 0]
    assert HiFAConfig(num_inference_steps=100, lambda_disparity=2.0).disparity_weight(25) == 2


def test_defaults_are_the_papers():
    assert HiFAConfig() == HiFAConfig.paper()


@presets
def test_json_keeps_everything(preset):
    config = preset(kernel=(1.0, 2.0, 1.0), t_min=0.1)
    again = HiFAConfig(**json.loads(json.dumps(config.to_dict())))
    assert again == config and hash(again) == hash(config)
    assert again.kernel == (1.0, 2.0, 1.0)


def test_settings_cannot_change_under_a_run():
    with pytest.raises(AttributeError):
        HiFAConfig().eta = 0.5


def test_render_size_grows_in_eight_stages():
    config = HiFAConfig.fast(num_inference_steps=100, start_render_size=32, render_size=64, growth_end=0.5)
    # 32 pixels more over 50 steps, 4 at a time.
    sizes = [config.render_size_at(step) for step in range(100)]
    assert sizes[0] == 32 and sizes[25] == 48 and sizes[49] == 60
    assert sizes[50:] == [64] * 50
    assert sorted(set(sizes)) == list(range(32, 65, 4)) and sizes == sorted(sizes)


def test_render_size_without_growth():
    config = HiFAConfig.fast(start_render_size=32, render_size=64, growth_end=0.0)
    assert config.render_size_at(0) == config.render_size_at(399) == 64


def test_the_work_of_steps_by_hand():
    config = HiFAConfig.fast(num_inference_steps=10, num_views=4, num_views_end=0.3)
    assert config.work(0, 10) == pytest.approx(3 * 2.8 + 7)
    assert config.work(2, 5) == pytest.approx(2.8 + 2) and config.work(5, 9) == 4
    assert config.work(0, 10) == pytest.approx(sum(config.work(step, step + 1) for step in range(10)))
    assert [config.work(step, step + 1) > 1 for step in range(10)] == [
        config.num_views_at(step) > 0 for step in range(10)
    ]
    assert HiFAConfig.fast(num_views=0).work(0, 7) == 7
