"""Test `python -m hifa` with a photo or a sheet of views."""

import PIL.Image
import pytest

from hifa import HiFAPipeline, HiFARun
from hifa.__main__ import build_parser, main
from hifa.multiview.input_image import prepare_image
from hifa.photo_cutout import prepare_picture
from tests.helpers.runs import QUICK
from tests.helpers.syncdreamer import tiny_pipeline
from tests.helpers.views import disc, shades


@pytest.fixture(scope="session")
def multiview(tmp_path_factory):
    """Folder of a tiny random SyncDreamer."""
    folder = tmp_path_factory.mktemp("multiview")
    model = tiny_pipeline()
    model.register_to_config(num_inference_steps=2)
    model.save_pretrained(folder)
    return str(folder)


def test_a_photo_becomes_an_asset_beside_what_the_models_saw(cli, multiview, tmp_path):
    disc(size=64).save(photo := tmp_path / "photo.png")
    out = tmp_path / "out"
    picture = ("--image", str(photo), "--elevation", "20", "--multiview", multiview)
    assert cli(*picture, "--steps", "2", "--output-dir", str(out), *QUICK) == 0
    run = HiFARun.load(out / "run")
    assert run.finished and run.prompt is None and len(run.views) == 16
    assert PIL.Image.open(out / "input.png").size == (32, 32), "the size of this multi-view model"
    sheet = PIL.Image.open(out / "views.png")
    assert sheet.size == (16 * 32, 32)
    assert (out / "mesh.glb").exists()


def test_a_photo_at_the_border_is_told_and_prepared_once(cli, multiview, tmp_path, caplog):
    """Without an elevation, which is estimated; `input.png` is what the multi-view model was really given."""
    image = disc(size=64, radius=0.6)
    image.save(photo := tmp_path / "photo.png")
    out = tmp_path / "out"
    picture = ("--image", str(photo), "--view-seeds", "2", "--multiview", multiview)
    assert cli(*picture, "--steps", "2", "--output-dir", str(out), *QUICK) == 0
    assert "touches the top" in caplog.text and "elevation" in caplog.text  # logged, and so on stderr
    seen = prepare_image(prepare_picture(image).image, 32).movedim(0, -1) / 2 + 0.5
    assert PIL.Image.open(out / "input.png").tobytes() == (seen.numpy() * 255).round().astype("uint8").tobytes()
    metadata = HiFARun.load(out / "run").note
    assert "touches the top" in metadata and "was estimated" in metadata


def test_a_sheet_guides_a_prompt_for_a_while(cli, tmp_path):
    from hifa.multiview.given_views import read_views

    read_views(shades(), 1.0).sheet().save(sheet := tmp_path / "sheet.png")
    out = tmp_path / "out"
    arguments = ("a red ball", "--views", str(sheet), "--image-guidance-end", "0.5", "--preset", "fast")
    assert cli(*arguments, "--steps", "4", "--output-dir", str(out), *QUICK) == 0
    run = HiFARun.load(out / "run")
    assert run.config.image_guidance_end == 0.5 and run.embeddings is not None
    assert ["given_image" in losses for losses in run.losses] == [True, True, False, False]
    assert PIL.Image.open(out / "views.png").tobytes() == PIL.Image.open(sheet).convert("RGB").tobytes()
    assert not (out / "input.png").exists()


def test_the_folder_is_named_after_the_picture_without_a_prompt():
    from hifa.__main__ import output_folder

    def folder(*arguments):
        return output_folder(build_parser().parse_args(arguments)).as_posix()

    assert folder("--image", "a/My Photo.png") == "outputs/my-photo"
    assert folder("--views", "sheet.png") == "outputs/sheet"
    assert folder("a duck", "--image", "photo.png") == "outputs/a-duck"


def test_bad_pictures_are_told_before_a_model_is_loaded(tmp_path, capsys, monkeypatch):

    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(HiFAPipeline, "from_pretrained", None)  # any use fails
    (tmp_path / "text.png").write_text("no picture")
    PIL.Image.new("RGB", (64, 64), "white").save(tmp_path / "white.png")
    for arguments, words in (
        (("--image", "none.png", "--elevation", "0"), "Cannot read 'none.png'"),
        (("--image", "text.png", "--elevation", "0"), "Cannot read 'text.png'"),
        (("--image", "white.png", "--elevation", "0"), "shows no object"),
        (("--views", "text.png"), "Cannot read 'text.png'"),
    ):
        assert main([*arguments, "--output-dir", "out"]) == 2
        assert words in capsys.readouterr().err.strip().splitlines()[-1]
