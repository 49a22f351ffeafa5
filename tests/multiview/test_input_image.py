"""Input preparation: framing, compositing and refusals."""

import PIL.Image
import PIL.ImageDraw
import pytest
import torch

from hifa.multiview.input_image import prepare_image
from tests.helpers.views import picture


def extent(prepared: torch.Tensor) -> tuple[int, int]:
    """Height and width of what is not white."""
    rows, columns = torch.nonzero(prepared.amin(0) < 0.9, as_tuple=True)
    return int(rows.max() - rows.min() + 1), int(columns.max() - columns.min() + 1)


def test_without_a_crop_the_framing_stays():
    prepared = prepare_image(picture(), size=40)
    assert prepared.shape == (3, 40, 40) and prepared.dtype == torch.float32
    assert prepared[:, 0, 0].tolist() == [1, 1, 1]
    assert prepared[:, 20, 20].tolist() == [1, -1, -1]
    assert extent(prepared) == (10, 20)  # padded to 40x40, not stretched


def test_crop_scales_the_longer_side():
    prepared = prepare_image(picture(), size=64, crop_size=48)
    height, width = extent(prepared)
    assert width == 48 and abs(height - 24) <= 1 + 48 / 20
    assert prepared[:, 32, 32].tolist() == [1, -1, -1]


def test_faint_alpha_widens_the_frame_unless_it_is_ignored():
    image = picture()
    image.putpixel((0, 0), (0, 0, 0, 3))
    assert extent(prepare_image(image, 64, 48))[1] < 40
    assert extent(prepare_image(image, 64, 48, alpha_threshold=12))[1] == 48


def test_half_transparent_is_mixed_with_white():
    prepared = prepare_image(picture(color=(0, 0, 0, 128)), size=40)
    torch.testing.assert_close(prepared[:, 20, 20], torch.full((3,), 1 - 2 * 128 / 255))


def test_an_object_of_one_pixel():
    assert extent(prepare_image(picture(box=(7, 7, 7, 7)), 16, 8)) == (8, 8)


@pytest.mark.parametrize(
    "image, options, message",
    [
        ("photo.png", {}, "must be a PIL image with transparency, got str"),
        (PIL.Image.new("RGB", (8, 8)), {}, r"no transparency \(mode RGB\); remove its background"),
        (PIL.Image.new("RGBA", (8, 8), (1, 2, 3, 255)), {}, "opaque everywhere; remove its background"),
        (PIL.Image.new("RGBA", (8, 8), 0), {}, "transparent everywhere: the maximum alpha is 0"),
        (picture(color=(9, 9, 9, 5)), {"alpha_threshold": 12}, "maximum alpha is 5"),
        (picture(), {"crop_size": 300}, "crop_size must be from 1 to 256 pixels, got 300"),
        (picture(), {"crop_size": 0}, "crop_size must be from 1 to 256 pixels, got 0"),
        (picture(), {"alpha_threshold": 255}, "alpha_threshold must be from 0 to 254, got 255"),
    ],
)
def test_refusals(image, options, message):
    with pytest.raises(ValueError, match=message):
        prepare_image(image, **options)
