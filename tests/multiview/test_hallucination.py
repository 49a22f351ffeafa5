"""Test runs from one photo: a multi-view model makes the views that guide the run."""

from dataclasses import replace

import numpy as np
import pytest
import torch

from hifa import HiFAPipeline, HiFARun, Photo
from hifa.multiview import SyncDreamerPipeline, best_of_seeds
from hifa.multiview.architecture import build_scheduler, build_volume
from hifa.multiview.hallucination import EMBEDDED_NOTE
from hifa.multiview.input_image import prepare_image
from hifa.multiview.selection import ELEVATIONS_DEG
from hifa.photo_cutout import PreparedPicture
from tests.helpers.runs import TINY as TINY_TEXT
from tests.helpers.runs import generator
from tests.helpers.syncdreamer import TINY as TINY_MODEL
from tests.helpers.syncdreamer import tiny_models, tiny_pipeline
from tests.helpers.views import disc


TINY = replace(TINY_TEXT, given_rays=128, num_inference_steps=4)


@pytest.fixture(scope="module")
def pipe(tiny_prior):
    pipe = HiFAPipeline.from_pretrained(tiny_prior)
    pipe.set_progress_bar_config(disable=True)
    return pipe


def start(pipe, **inputs) -> HiFARun:
    return pipe.start("a red ball", config=TINY, generator=generator(), **inputs)


def test_from_a_photo_through_a_multi_view_model(pipe):
    sync = tiny_pipeline()
    photo = Photo(disc(size=64), 20, sync, settings={"num_inference_steps": 2})
    run, again = start(pipe, image=photo), start(pipe, image=photo)
    assert len(run.views) == 16 and run.views.size == sync.image_size == 32
    assert torch.equal(run.views.color, again.views.color), "the generator decides"
    output = pipe(image=photo, config=TINY, num_frames=1)
    assert output.runs[0].finished and output.assets[0].prompt == ""


def counted(sync, elevations: list) -> None:
    """Have a multi-view model keep count of the elevations of its calls."""
    encode = sync.encode_image

    def counting(prepared, elevation_deg, generator):
        elevations.append(elevation_deg)
        return encode(prepared, elevation_deg, generator)

    sync.encode_image = counting


def test_an_unknown_elevation_is_estimated_and_told(pipe):
    counted(sync := tiny_pipeline(), elevations := [])
    photo = Photo(disc(size=64), multiview=sync, view_seeds=3, settings={"num_inference_steps": 1})
    run = start(pipe, image=photo)
    assert elevations[:6] == list(ELEVATIONS_DEG) and len(elevations) == 8, "two more sheets at the estimate"
    assert elevations[6] == elevations[7] and f"estimated: {elevations[6]:g} degrees" in run.note
    assert run.note == run.asset().metadata["note"]
    assert torch.equal(start(pipe, image=photo).views.color, run.views.color), "the generator decides"


def test_of_several_seeds_the_best_sheet_is_used(pipe):
    counted(sync := tiny_pipeline(), elevations := [])
    settings = {"num_inference_steps": 1}
    photo = Photo(disc(size=64), 20, sync, view_seeds=4, settings=settings).prepare()
    made = photo.hallucinate(torch.Generator().manual_seed(0))
    assert elevations == [20] * 4 and made.elevation_deg == 20 and made.note == ""
    seeds = torch.randint(2**31 - 1, (4,), generator=torch.Generator().manual_seed(0)).tolist()
    best, *others = best_of_seeds(sync, photo.picture.image, 20, seeds, **settings)
    assert torch.equal(made.images, best.images) and best.score > min(other.score for other in others)


def test_one_photo_is_hallucinated_once_for_several_prompts_and_shown_back(pipe):
    counted(sync := tiny_pipeline(), elevations := [])
    photo = Photo(disc(size=64, radius=0.6), 20, sync, settings={"num_inference_steps": 1})
    output = pipe(["a red ball", "a blue ball"], image=photo, config=TINY, num_frames=1, frame_size=8)
    assert elevations == [20]
    assert torch.equal(output.runs[0].views.color, output.runs[1].views.color)
    assert output.picture.image.size == (256, 256) and "touches" in output.picture.warnings[0]
    assert output.runs[1].note == output.picture.warnings[0]
    assert pipe("a red ball", config=TINY, num_frames=1, frame_size=8).picture is None


def test_a_prepared_picture_is_not_prepared_again():
    prepared = PreparedPicture(disc(size=64, radius=0.2), "alpha")
    photo = Photo(prepared, 20, sync := tiny_pipeline()).prepare()
    assert photo.picture is prepared
    seen = prepare_image(prepared.image, sync.image_size).movedim(0, -1) / 2 + 0.5
    assert np.array_equal(np.asarray(photo.model_input()), (seen.numpy() * 255).round().astype(np.uint8))


def test_the_embedded_multi_view_model_says_what_it_knows(pipe):
    photo = Photo(disc(size=64), 20).prepare(SyncDreamerPipeline.from_pretrained())
    assert photo.hallucinate(generator()).note == EMBEDDED_NOTE


def test_views_are_placed_where_the_ring_of_their_model_is(pipe):
    size = replace(TINY_MODEL.volume, num_views=8, elevation_deg=0.0, radius=2.0, half_extent=0.7)
    volume = build_volume(replace(TINY_MODEL, volume=size)).eval()
    sync = SyncDreamerPipeline(**(tiny_models() | {"volume": volume}), scheduler=build_scheduler())
    run = start(pipe, image=Photo(disc(size=64), 20, sync, settings={"num_inference_steps": 1}))
    assert [camera.azimuth_deg for camera in run.views.cameras] == [45.0 * view for view in range(8)]
    assert {camera.elevation_deg for camera in run.views.cameras} == {0.0}
    # Half the side of the object is 1 / 1.2 of the bound, as it is with SyncDreamer's ring.
    assert run.views.cameras[0].radius == pytest.approx(2.0 / 0.7 / 1.2)


@pytest.mark.parametrize(
    "options, error, words",
    [
        ({"multiview": None}, ValueError, "image with this prior needs a model that hallucinates views"),
        ({"multiview": "SyncDreamer"}, TypeError, "multiview must be a SyncDreamerPipeline, got str"),
        ({"elevation_deg": 120}, ValueError, "elevation_deg .* got 120"),
        ({"view_seeds": 0}, ValueError, "view_seeds .* from 1 to 64, got 0"),
        ({"settings": {"steps": 2}}, ValueError, "; got steps"),
        ({"settings": {"eta": 2}}, ValueError, "eta must be .* got 2"),
        ({"settings": {"crop_size": 99}}, ValueError, "to 32 .* got 99"),
    ],
)
def test_bad_photos_are_refused_before_work(pipe, options, error, words):
    with pytest.raises(error, match=words):
        pipe("a red ball", image=Photo(disc(), **{"multiview": tiny_pipeline()} | options), config=TINY)


def test_the_settings_of_a_photo_cannot_change():
    with pytest.raises(AttributeError):
        Photo(disc()).elevation_deg = 20
