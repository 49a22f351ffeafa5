"""Input pictures: every mode and size ends in the same cut-out, and what cannot is refused by name."""

import io
import sys
import types

import numpy as np
import PIL.Image
import PIL.ImageCms
import PIL.ImageDraw
import pytest

from hifa import photo_cutout as pictures
from hifa.photo_cutout import PictureError, open_picture, prepare_picture


RED, WHITE = (200, 30, 20), (255, 255, 255)


def photo(size=(40, 40), box=(10, 5, 29, 14), color=RED, behind=(*WHITE, 0)) -> PIL.Image.Image:
    """A rectangle 20 wide and 10 high, corners included."""
    image = PIL.Image.new("RGBA", size, behind)
    PIL.ImageDraw.Draw(image).rectangle(box, fill=(*color, 255))
    return image


def on_white(**options) -> PIL.Image.Image:
    return photo(behind=(*WHITE, 255), **options).convert("RGB")


def extent(prepared) -> tuple[int, int, int, int]:
    """Left, top, right and bottom of what is not transparent."""
    return prepared.image.getchannel("A").getbbox()


def saved(image, suffix, **options) -> PIL.Image.Image:
    data = io.BytesIO()
    image.save(data, suffix, **options)
    data.seek(0)
    return PIL.Image.open(data)


def test_transparency_is_used_as_it_is():
    prepared = prepare_picture(photo(), size=64, object_size=40)
    assert prepared.background == "alpha"
    assert prepared.warnings == ("The object has only 20x10 pixels: the result will be blurred.",)
    assert prepared.image.size == (64, 64) and extent(prepared) == (12, 22, 52, 42)  # 40x20, centered
    assert prepared.image.getpixel((32, 32)) == (*RED, 255)
    preview = prepared.preview()
    assert preview.mode == "RGB" and preview.getpixel((0, 0)) == WHITE and preview.getpixel((32, 32)) == RED


def test_object_fills_200_of_256_pixels_without_a_size():
    left, _, right, _ = extent(prepare_picture(photo()))
    assert right - left == 200


def test_faint_alpha_is_background():
    image = photo()
    image.putpixel((0, 39), (0, 0, 0, 11))
    assert extent(prepare_picture(image, 64, 40)) == (12, 22, 52, 42)
    wide = extent(prepare_picture(image, 64, 40, faint_alpha=5))
    assert wide[3] - wide[1] == 40  # from the rectangle's top to the faint corner: higher than wide


def test_plain_white_background_is_keyed_out_but_white_inside_stays():
    image = on_white()
    image.paste(WHITE, (15, 8, 20, 11))
    prepared = prepare_picture(image, size=64, object_size=40)
    assert prepared.background == "white" and extent(prepared) == (12, 22, 52, 42)
    assert prepared.image.getpixel((12 + 2 * 7, 22 + 2 * 4))[3] == 255


@pytest.mark.parametrize("alpha", [254, 0])
def test_a_pixel_that_is_not_opaque_makes_no_cut_out(alpha):
    image = on_white().convert("RGBA")
    image.putpixel((0, 0), (*WHITE, alpha))
    prepared = prepare_picture(image, size=64, object_size=40)
    assert prepared.background == "white" and extent(prepared) == (12, 22, 52, 42)


def test_other_backgrounds_need_rembg(monkeypatch):
    image = photo(behind=(30, 90, 40, 255)).convert("RGB")
    monkeypatch.setitem(sys.modules, "rembg", None)  # as if it were not installed
    with pytest.raises(PictureError, match=r"pip install 'hifa\[background\]'"):
        prepare_picture(image)
    fake = types.SimpleNamespace(remove=lambda rgb: photo())
    monkeypatch.setitem(sys.modules, "rembg", fake)
    assert prepare_picture(image).background == "rembg"


@pytest.mark.parametrize("mode", ["RGB", "L", "P", "CMYK", "YCbCr", "LAB", "HSV"])
def test_modes_without_alpha(mode):
    image = on_white()
    if mode == "LAB":
        space = PIL.ImageCms.createProfile
        image = PIL.ImageCms.profileToProfile(image, space("sRGB"), space("LAB"), outputMode="LAB")
    prepared = prepare_picture(image.convert(mode), 64, 40)
    assert prepared.background == "white" and extent(prepared) == (12, 22, 52, 42)
    assert prepared.preview().getpixel((32, 32))[0] < 240


@pytest.mark.parametrize("mode", ["RGBA", "LA", "PA", "RGBa", "La"])
def test_modes_with_alpha(mode):
    image = photo()
    image = image.convert("LA").convert("La") if mode == "La" else image.convert(mode)
    prepared = prepare_picture(image, 64, 40)
    assert prepared.background == "alpha" and extent(prepared) == (12, 22, 52, 42)


def test_palette_and_single_color_transparency():
    image = PIL.Image.new("P", (40, 40), 0)
    image.putpalette([*WHITE, *RED])
    image.paste(1, (10, 5, 30, 15))
    prepared = prepare_picture(saved(image, "PNG", transparency=0), 64, 40)
    assert prepared.background == "alpha" and extent(prepared) == (12, 22, 52, 42)
    keyed = saved(photo(behind=(0, 255, 0, 255)).convert("RGB"), "PNG", transparency=(0, 255, 0))
    assert extent(prepare_picture(keyed, 64, 40)) == (12, 22, 52, 42)


@pytest.mark.parametrize("dtype, white, gray", [
    (np.uint16, 65535, 32896), (np.int32, 65535, 32896), (np.int32, 255, 128), (np.float32, 1.0, 0.502),
    (np.float32, 255.0, 128.0),
])  # fmt: skip
def test_more_than_eight_bits(dtype, white, gray):
    values = np.full((40, 40), white, dtype)
    values[5:15, 10:30] = gray
    image = PIL.Image.fromarray(values)
    prepared = prepare_picture(saved(image, "PNG") if dtype == np.uint16 else image, 64, 40)
    assert extent(prepared) == (12, 22, 52, 42)
    assert prepared.image.getpixel((32, 32)) == (128, 128, 128, 255)


def test_exif_rotation_is_followed():
    exif = PIL.Image.Exif()
    exif[0x0112] = 6  # turn by 90 degrees
    prepared = prepare_picture(saved(on_white(), "PNG", exif=exif), 64, 40)
    left, top, right, bottom = extent(prepared)
    assert (right - left, bottom - top) == (20, 40)


def test_animation_gives_its_first_frame():
    frames = [on_white(), on_white(box=(0, 0, 3, 3))]
    assert extent(prepare_picture(saved(frames[0], "GIF", save_all=True, append_images=frames[1:]), 64, 40)) == (
        12, 22, 52, 42,
    )  # fmt: skip


def test_huge_pictures_are_reduced_first(monkeypatch):
    monkeypatch.setattr(pictures, "WORKING_SIDE", 200)
    image = photo(size=(500, 500), box=(100, 50, 299, 149))
    assert max(pictures.as_rgba(image).size) == pictures.WORKING_SIDE
    left, top, right, bottom = extent(prepare_picture(image, 64, 40))
    assert abs(right - left - 40) <= 1 and abs(bottom - top - 20) <= 1


def test_transparent_pixels_do_not_color_the_edge():
    prepared = prepare_picture(photo(behind=(0, 255, 0, 0)), 64, 37)
    edge = np.asarray(prepared.image).reshape(-1, 4)
    assert edge[edge[:, 3] > 20, 1].max() < 60, "no green"


def test_a_picture_of_one_pixel_of_object():
    assert extent(prepare_picture(photo(box=(7, 7, 7, 7)), 16, 8)) == (4, 4, 12, 12)


@pytest.mark.parametrize(
    "box, words",
    [((0, 5, 20, 14), "touches the left of"), ((10, 0, 39, 39), "touches the top and bottom and right of")],
)
def test_an_object_at_the_border_is_reported(box, words):
    assert any(words in warning for warning in prepare_picture(photo(box=box)).warnings)
    assert prepare_picture(photo(size=(99, 99), box=(20, 20, 70, 70))).warnings == ()


def test_decompression_bombs_are_refused_before_they_are_decoded(tmp_path, monkeypatch):
    on_white().save(tmp_path / "bomb.png")
    decoded = []
    monkeypatch.setattr(PIL.Image.Image, "load", lambda self: decoded.append(self))
    monkeypatch.setattr(pictures, "MAX_PIXELS", 1000)
    with pytest.raises(PictureError, match="40x40 pixels, but the limit is 1,000"):
        open_picture(tmp_path / "bomb.png")
    monkeypatch.setattr(PIL.Image, "MAX_IMAGE_PIXELS", 100)
    with pytest.raises(PictureError, match="too large"):
        open_picture(tmp_path / "bomb.png")
    assert not decoded


def test_what_is_no_picture_is_refused(tmp_path):
    (tmp_path / "text.png").write_text("hello")
    on_white().resize((400, 400)).save(tmp_path / "whole.png")
    (tmp_path / "half.png").write_bytes((tmp_path / "whole.png").read_bytes()[:600])
    for name in ("text.png", "half.png", "absent.png"):
        with pytest.raises(PictureError, match=f"Cannot read .*{name}"):
            prepare_picture(tmp_path / name)
    with pytest.raises(PictureError, match="Cannot read a int as a picture"):
        prepare_picture(3)
    assert prepare_picture(tmp_path / "whole.png").background == "white"


@pytest.mark.parametrize(
    "image, words",
    [
        (PIL.Image.new("RGBA", (40, 40), 0), "shows no object: its largest alpha is 0"),
        (PIL.Image.new("RGBA", (40, 40), (1, 2, 3, 9)), "shows no object: its largest alpha is 9"),
        (PIL.Image.new("RGB", (40, 40), WHITE), r"shows no object: .*\(white\)"),
        (PIL.Image.new("RGB", (4, 40)), "4x40 pixels. Use a picture of 256x256"),
        (PIL.Image.fromarray(np.full((40, 40), np.nan, np.float32)), "NaN"),
    ],
)
def test_pictures_without_an_object_are_refused(image, words):
    with pytest.raises(PictureError, match=words):
        prepare_picture(image)


def test_object_size_must_fit():
    with pytest.raises(ValueError, match="object_size must be from 1 to 64 pixels, got 65"):
        prepare_picture(photo(), 64, 65)


@pytest.mark.parametrize("kind", ["PNG", "JPEG", "WEBP", "GIF", "BMP", "TIFF"])
def test_pictures_come_in_the_usual_formats(tmp_path, kind):
    on_white(size=(64, 64)).save(tmp_path / "picture", kind)
    assert open_picture(tmp_path / "picture").size == (64, 64)


@pytest.mark.parametrize("kind", ["PPM", "PCX", "TGA", "SGI", "ICO", "EPS"])
def test_no_other_decoder_is_reached_whatever_the_file_is_called(tmp_path, kind):
    on_white(size=(64, 64)).save(tmp_path / "picture.png", kind)
    with pytest.raises(PictureError, match="Use a PNG or JPEG"):
        open_picture(tmp_path / "picture.png")
