"""What an opened run brings back to its tab, and which of several inputs of a picture counts."""

import gradio as gr
import pytest
from PIL import Image

from hifa.space.jobs.models import PRIORS, ModelCache
from hifa.space.jobs.run_store import Request, RunStore
from hifa.space.jobs.step_times import Timings
from hifa.space.jobs.view_sheets import Sheets, contact_picture
from hifa.space.ui.image_inputs import ImageInputs
from hifa.space.ui.requests import Actions, Guided
from hifa.space.ui.restore import Tab
from hifa.space.ui.run_settings import RunSettings
from tests.helpers.space import tiny_model_cache


SIDE = 16


@pytest.fixture
def store(tmp_path) -> RunStore:
    return RunStore(tmp_path / "runs")


def striped(first: str) -> Image.Image:
    """Sixteen views, the first of another color."""
    sheet = Image.new("RGB", (16 * SIDE, SIDE), "blue")
    sheet.paste(first, (0, 0, SIDE, SIDE))
    return sheet


def values(parts, shown) -> dict:
    """What each part of a page becomes, by its label."""
    plain = [value.value if isinstance(value, gr.components.Component) else value for value in shown]
    plain = [value["value"] if isinstance(value, dict) else value for value in plain]
    return {part.label: value for part, value in zip(parts, plain, strict=True) if getattr(part, "label", None)}


def test_what_was_entered_for_a_run_comes_back(tmp_path, store, monkeypatch):
    model_cache = ModelCache("cpu", PRIORS)
    monkeypatch.setattr(model_cache, "get_or_fall_back", lambda key: (key, None, ""))  # as on a GPU
    with gr.Blocks():
        settings = RunSettings("text", "text", model_cache, Timings(tmp_path / "t.json"), False)
        tab = Tab(settings, gr.Textbox(label="Prompt"))
    paper = next(prior for prior in PRIORS if prior.key == "sd15").presets[2]
    asked = {**paper.settings, "num_inference_steps": 10_000, "denoising_stride": 0.5}
    folder = store.create(Request("text", "a red mushroom", "sd15", 77, "blue", asked))
    back = values(tab.outputs, tab.restored(folder, folder.read().request))
    assert back == {
        "Prior": "sd15", "Preset": "Paper", "Seed": 77, "New seed each time": False, "Steps": 10_000,
        "Guidance scale": "", "Denoising stride": "0.5", "Negative prompt": "blue", "Prompt": "a red mushroom",
    }  # fmt: skip
    # And it makes the same run.
    again = settings.settings_of("sd15", back["Preset"], back["Steps"], "", back["Denoising stride"])
    assert again == asked


def test_other_steps_than_those_of_a_preset_come_back_too(tmp_path, store):
    with gr.Blocks():
        settings = RunSettings("text", "text", ModelCache("cpu", PRIORS), Timings(tmp_path / "t.json"), False)
    back = values(
        settings.inputs, settings.restored(Request("text", "a", "toybox", 1, settings={"num_inference_steps": 321}))
    )
    assert back["Steps"] == 321 and back["Preset"] == "Standard"


def test_a_run_of_a_prior_that_is_no_longer_offered_opens(tmp_path):
    with gr.Blocks():
        settings = RunSettings("text", "text", ModelCache("cpu", PRIORS), Timings(tmp_path / "t.json"), False)
    request = Request("text", "a", "gone", 1, settings={"num_inference_steps": 321})
    back = values(settings.inputs, settings.restored(request))
    assert back["Prior"] == "toybox" and back["Steps"] == 321 and back["Guidance scale"] == ""


def test_views_of_a_run_come_back_to_be_chosen_from(tmp_path, store):
    with gr.Blocks():
        inputs = ImageInputs("image", store, view_steps=1)
    folder = store.create(Request("image", "", "toybox", 3, object_share=0.5, elevation_deg=10, view_seeds=(3, 4)))
    for seed, score in ((3, 0.2), (4, 0.9)):
        Sheets(folder.path).add(seed, striped("red"), score)
    Image.new("RGBA", (8, 8)).save(folder.path / "picture.png")
    back = dict(zip(inputs.restorable, inputs.restored(folder, folder.read().request), strict=True))
    assert [back[part] for part in inputs.restorable[:4]] == [0.5, 10, 2, 1]
    assert back[inputs.photo] == str(folder.path / "picture.png")
    assert back[inputs.views_run] == folder.id and back[inputs.chosen] == 4 and back[inputs.sheet] is None
    given = store.create(Request("image", "", "toybox", 3))
    Sheets(given.path).give(striped("red"))
    back = dict(zip(inputs.restorable, inputs.restored(given, given.read().request), strict=True))
    assert back[inputs.photo] is back[inputs.chosen] is None and back[inputs.sheet] == str(given.path / "sheet.png")


def test_an_uploaded_sheet_takes_the_place_of_made_views_and_of_a_picture(tiny_prior, store, tmp_path):
    actions = Actions(store, tiny_model_cache(tiny_prior), view_steps=1)
    made = store.create(Request("image", "", "toybox", 3))
    Sheets(made.path).add(3, striped("red"), 1.0)
    striped("lime").save(tmp_path / "sheet.png")
    sheet, options = str(tmp_path / "sheet.png"), ("", "", "toybox", 0, False, {"num_inference_steps": 10})

    def first_color(given: Guided):
        folder, _ = actions.guided("image", given, *options)
        return Sheets(folder.path).best().getpixel((2, 2))

    assert first_color(Guided(None, 0.8, 20, None, (made.id, 3))) == (255, 0, 0)
    assert first_color(Guided(None, 0.8, 20, sheet, (made.id, 3))) == (0, 255, 0)


def test_the_page_says_and_keeps_what_came_last():
    assert ImageInputs.source(None, "sheet.png", None) == ImageInputs.source("photo.png", "sheet.png", 3)
    assert "uploaded sheet" in ImageInputs.source(None, "sheet.png", 3)
    assert "seed 3" in ImageInputs.source("photo.png", None, 3)
    assert "picture" in ImageInputs.source("photo.png", None, None) and not ImageInputs.source(None, None, None)
    assert ImageInputs._on_photo("photo.png")[-1] is None  # the sheet goes
    assert ImageInputs._on_sheet("sheet.png")[:2] == ("", None)  # the views go


def test_sheets_are_shown_in_rows_the_used_one_first(store):
    sheets = Sheets(store.create(Request("image", "", "toybox", 3)).path)
    sheets.add(3, striped("red"), 0.2)
    sheets.add(4, striped("lime"), 0.9)
    (best, said), _ = sheets.pictures()
    assert said == "seed 4 · views agree 90%"
    with Image.open(best) as picture:
        assert picture.size == contact_picture(striped("lime")).size == (512, 512)
        assert picture.getpixel((60, 60))[1] > 200 > picture.getpixel((200, 60))[1]
