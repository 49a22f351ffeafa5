"""Settings: their declarations, their values as text, their reference table, and `--set` of the commands."""

import os
import subprocess
import sys
from dataclasses import dataclass, fields, replace
from pathlib import Path

import pytest

from hifa import HiFAConfig, HiFAPipeline, batch
from hifa.__main__ import build_parser, main
from hifa.cli.options import SETTING_OPTIONS, given_settings, preset_config
from hifa.field.spherical_harmonics import MAX_BANDS
from hifa.settings import (
    FIELD_LIMITS,
    format_value,
    parse_settings,
    setting,
    settings_of,
    settings_table,
    settings_text,
)


ROOT = Path(__file__).parents[1]
README = ROOT / "hifa" / "optimization" / "README.md"
SETTINGS = settings_of(HiFAConfig)
NUMBERS = [one for one in SETTINGS.values() if one.type in (int, float)]
PRESETS = ("paper", "official", "preview", "mvdream", "multiview_preview", "fast", "reconstruction", "hallucinated")
PRESETS += ("guided", "guided_preview")


# Declarations


def test_every_field_is_a_setting_with_help_and_a_group():
    assert list(SETTINGS) == [field.name for field in fields(HiFAConfig)]
    for one in SETTINGS.values():
        assert one.help.endswith(".") and one.help[0].isupper() and "|" not in one.help and "\n" not in one.help
        assert one.group


def test_every_number_has_a_range_and_every_text_has_choices():
    for one in SETTINGS.values():
        if one.type is str:
            assert one.default in one.choices and one.low is None
        elif not one.is_kernel:
            assert one.low < one.high and not one.choices


def test_defaults_are_class_attributes():
    assert HiFAConfig.guidance_scale == 100.0 == SETTINGS["guidance_scale"].default
    assert HiFAConfig.kernel == (1.0, 1.0, 1.0)


def test_ranges_of_a_field_are_those_of_the_settings():
    for name, (low, high) in FIELD_LIMITS.items():
        assert (SETTINGS[name].low, SETTINGS[name].high) == (low, high)
    assert SETTINGS["view_bands"].high == MAX_BANDS


@pytest.mark.parametrize("one", NUMBERS, ids=lambda one: one.name)
def test_bounds_are_inclusive(one):
    for bound in (one.low, one.high):
        one.check(one.type(bound))
    for value in (one.low - 1, one.high + 1):
        with pytest.raises(ValueError, match=f"{one.name} must be between {one.low} and {one.high}, got "):
            one.check(value)


def test_a_dataclass_of_ones_own():
    @dataclass
    class Own:
        size: int = setting(3, 1, 4, "Pixels.", group="First")
        kind: str = setting("a", choices=("a", "b"), help="Kind.")
        span: tuple[float, float] = setting((0.0, 1.0), 0, 2, "Seconds.", group="Second")

    assert [one.group for one in settings_of(Own).values()] == ["First", "First", "Second"]
    assert settings_table(Own).splitlines() == [
        "### First",
        "",
        "| name | default | range | description |",
        "|---|---|---|---|",
        "| `size` | 3 | 1 to 4 | Pixels. |",
        "| `kind` | a | a, b | Kind. |",
        "",
        "### Second",
        "",
        "| name | default | range | description |",
        "|---|---|---|---|",
        "| `span` | 0,1 | pair, 0 to 2 | Seconds. |",
    ]
    assert settings_text(Own).splitlines() == [
        "First:",
        "  size  3    1 to 4",
        "      Pixels.",
        "  kind  a    a, b",
        "      Kind.",
        "",
        "Second:",
        "  span  0,1  pair, 0 to 2",
        "      Seconds.",
    ]


# Values as text


@pytest.mark.parametrize("preset", PRESETS)
def test_values_as_text_are_parsed_back(preset):
    config = getattr(HiFAConfig, preset)()
    assignments = [f"{name}={format_value(value)}" for name, value in config.to_dict().items()]
    values = parse_settings(HiFAConfig, assignments)
    assert HiFAConfig(**values) == config
    assert {name: type(value) for name, value in values.items()} == {
        name: type(value) for name, value in config.to_dict().items()
    }


@pytest.mark.parametrize(
    "text, value", [("2.4,2.6", (2.4, 2.6)), ("2, 3", (2.0, 3.0)), ("2e0,3", (2.0, 3.0)), ("2.5,2.5", (2.5, 2.5))]
)
def test_pairs_are_separated_by_commas(text, value):
    assert parse_settings(HiFAConfig, [f"camera_radius={text}"]) == {"camera_radius": value}


@pytest.mark.parametrize(
    "value, text",
    [(10_000, "10000"), (2**24, "16777216"), (1e6, "1e6"), (1e-6, "1e-6"), (0.3, "0.3"), (1 / 3, str(1 / 3))],
)
def test_numbers_are_short(value, text):
    assert format_value(value) == text and type(value)(text) == value


@pytest.mark.parametrize(
    "assignment, message",
    [
        ("eta", "Settings have the form KEY=VALUE, such as eta=0.5, got 'eta'."),
        ("guidance=7", "Unknown setting 'guidance'. The nearest names are view_guidance, guidance_scale, "),
        ("lambda-normal=1", "Unknown setting 'lambda-normal'. The nearest names are lambda_normal, "),
        ("zzz=1", "Unknown setting 'zzz'. --list-settings prints all names."),
        ("=1", "Unknown setting ''. --list-settings prints all names."),
        ("n_fine=many", "n_fine must be a whole number, got 'many'."),
        ("n_fine=2.5", "n_fine must be a whole number, got '2.5'."),
        ("n_fine=1", "n_fine must be between 2 and 4096, got 1."),
        ("eta=", "eta must be a number, got ''."),
        ("eta=2", "eta must be between 0 and 1, got 2.0."),
        ("eta=nan", "eta must be finite, got nan."),
        ("annealing=SQRT", "annealing must be one of sqrt, linear, cosine, random, narrowing, got 'SQRT'."),
        ("camera_radius=a,b", "camera_radius must be numbers separated by commas, such as 1.0,2.0, got 'a,b'."),
        ("camera_radius=3", "camera_radius must be a pair (a, b) with 0 <= a <= b <= 1000000.0, got (3.0,)."),
        ("camera_radius=3,2", "camera_radius must be a pair (a, b) with 0 <= a <= b <= 1000000.0, got (3.0, 2.0)."),
        ("camera_radius=3,inf", "camera_radius must be finite, got (3.0, inf)."),
        ("kernel=1,1", "kernel needs an odd number of non-negative values, not all 0, got (1.0, 1.0)."),
    ],
)
def test_invalid_assignments_are_refused(assignment, message):
    with pytest.raises(ValueError) as error:
        parse_settings(HiFAConfig, [assignment])
    assert str(error.value).startswith(message) and "\n" not in str(error.value)


def test_a_setting_is_set_once():
    with pytest.raises(ValueError, match="eta is set twice"):
        parse_settings(HiFAConfig, ["eta=0", "n_fine=8", "eta=0"])


# Reference table


def test_the_readme_has_the_reference_table():
    table = settings_table(HiFAConfig)
    heading = table.splitlines()[0]
    assert README.read_text("utf-8").endswith(f"\n\n{table}"), (
        "Update the table with: "
        f"sed -i '/^{heading}$/,$d' hifa/optimization/README.md && "
        "python -m hifa --list-settings markdown >> hifa/optimization/README.md"
    )


# Commands


def parsed(*arguments: str):
    return given_settings(build_parser().parse_args(["a red ball", *arguments]))


def test_set_is_repeated_and_joined_with_the_options():
    assert parsed() == {}
    changes = parsed("--set", "lambda_normal=1", "annealing=linear", "--steps", "7", "--set", "camera_radius=2.4,2.6")
    assert changes == {
        "lambda_normal": 1.0, "annealing": "linear", "camera_radius": (2.4, 2.6), "num_inference_steps": 7,
    }  # fmt: skip


def test_a_value_may_be_negative():
    assert parsed("--set", "camera_elevation_deg=-10,20") == {"camera_elevation_deg": (-10.0, 20.0)}


@pytest.mark.parametrize("option", SETTING_OPTIONS)
def test_a_setting_is_not_given_by_its_option_and_by_set(option):
    name, flag = SETTING_OPTIONS[option], "--" + option.replace("_", "-")
    with pytest.raises(ValueError, match=f"{flag} and --set {name} are the same setting"):
        parsed(flag, "1", "--set", f"{name}=1")


def test_conflicts_are_found_for_a_given_preset():
    assert parsed("--set", "t_min=0.99")
    with pytest.raises(ValueError, match="t_min must not exceed t_max"):
        parsed("--preset", "fast", "--set", "t_min=0.99")


def test_set_wins_over_the_preset(tiny_prior):
    pipe = HiFAPipeline.from_pretrained(tiny_prior)
    settings = {"grid_lr": 0.5, "render_size": 256}
    assert preset_config(pipe, None, settings) is None
    config = preset_config(pipe, "official", settings)
    assert config == HiFAConfig.official(**settings) and config.lambda_zvar == 3 * 256**2
    assert preset_config(pipe, "fast", {"eta": 0.5}) == HiFAConfig.fast(eta=0.5, num_views=0, lambda_normal=0.0)


ERRORS = [
    (("--set", "guidance_scael=7"), "Unknown setting 'guidance_scael'. The nearest names are guidance_scale, "),
    (("--set", "eta=0", "n_fine=1"), "n_fine must be between 2 and 4096, got 1."),
    (("--set", "n_fine"), "Settings have the form KEY=VALUE, such as eta=0.5, got 'n_fine'."),
    (
        ("--steps", "7", "--set", "num_inference_steps=7"),
        "--steps and --set num_inference_steps are the same setting.",
    ),
    (("--guidance-scale", "nan"), "guidance_scale must be finite, got nan."),
    (("--preset", "fast", "--set", "bound=3"), "camera_radius must exceed bound=3.0, got (2.4, 2.6)."),
    (("--set", "kernel=0"), "kernel needs an odd number of non-negative values, not all 0, got (0.0,)."),
]


def test_wrong_settings_are_told_before_torch_is_loaded(tmp_path):
    """In a process of its own, with a torch that cannot be loaded."""
    script = (
        "import sys; sys.modules['torch'] = None\n"
        "from hifa.__main__ import main\n"
        "codes = [main(argv.split('|')) for argv in sys.argv[1:]]\n"
        "assert codes == [2] * len(codes), codes\n"
        "try: main(['--list-settings'])\n"
        "except SystemExit as end: assert not end.code\n"
    )
    command = [sys.executable, "-c", script, *("|".join(["a red ball", *given]) for given, _ in ERRORS)]
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    done = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    for line, (_, message) in zip(done.stderr.strip().splitlines(), ERRORS, strict=True):
        assert line.startswith(f"error: {message}")
    assert done.stdout == settings_text(HiFAConfig)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    "given, message", [case for case in ERRORS if not {"--steps", "--guidance-scale"} & {*case[0]}]
)
def test_the_batch_refuses_wrong_settings_before_a_model_is_loaded(given, message, tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(batch, "load_pipeline", None)  # any use fails
    (prompts := tmp_path / "prompts.txt").write_text("a red ball\n")
    assert batch.main([str(prompts), "--output-dir", str(tmp_path / "out"), *given]) == 2
    assert capsys.readouterr().err.startswith(f"error: {message}")
    assert not (tmp_path / "out").exists()


def test_a_saved_run_keeps_its_settings(tmp_path, capsys, monkeypatch):
    monkeypatch.setattr("hifa.__main__.find_saved", Path)
    assert main(["--resume", str(tmp_path), "--set", "eta=0"]) == 2
    assert "--set cannot be combined with --resume: a saved run keeps its settings" in capsys.readouterr().err


class Started(Exception):
    """Carries the arguments of `HiFAPipeline.start` out of a command."""


def test_settings_reach_the_run(tiny_prior, tmp_path, monkeypatch):
    def start(_, *args, **given):
        raise Started(given)

    monkeypatch.setattr(HiFAPipeline, "start", start)
    command = ["a red ball", "--model", str(tiny_prior), "--output-dir", str(tmp_path), "--set", "eta=0.5"]
    with pytest.raises(Started) as started:
        main([*command, "--preset", "paper"])
    given = started.value.args[0]
    assert given["config"] == HiFAConfig.paper(eta=0.5) and given["eta"] == 0.5
    with pytest.raises(Started) as started:
        main([*command, "--steps", "7"])
    given = started.value.args[0]
    assert given["config"] is None and given["eta"] == 0.5 and given["num_inference_steps"] == 7


def test_the_fields_of_a_line_win_over_set_in_a_batch(tiny_prior, tmp_path, monkeypatch):
    (prompts := tmp_path / "prompts.jsonl").write_text('{"prompt": "a red ball", "eta": 0.25}\n{"prompt": "a duck"}\n')
    jobs = []
    monkeypatch.setattr(batch, "load_pipeline", lambda *_: HiFAPipeline.from_pretrained(tiny_prior))
    monkeypatch.setattr(batch, "work", lambda pipe, job, *_: jobs.append(job) or True)
    arguments = ["--output-dir", str(tmp_path / "out"), "--set", "eta=0.5", "n_fine=8"]
    assert batch.main([str(prompts), *arguments]) == 0
    assert [job.settings for job in jobs] == [{"eta": 0.25, "n_fine": 8}, {"eta": 0.5, "n_fine": 8}]


def test_a_normal_model_has_an_effect_if_the_loss_is_set():
    from hifa.cli.options import check_normal_model

    arguments = build_parser().parse_args(["a red ball", "--preset", "paper", "--normal-model", "x"])
    with pytest.raises(ValueError, match="--normal-model has no effect with --preset paper"):
        check_normal_model(arguments, {"lambda_normal": 0.0})
    check_normal_model(arguments, {"lambda_normal": 1.0})


def test_changed_settings_are_checked():
    with pytest.raises(ValueError, match="eta must be between 0 and 1, got 2"):
        replace(HiFAConfig(), eta=2)
