"""The size of a GLB that the app predicts is that of the file, for meshes of real assets that reach their limit."""

import json

import pytest

from hifa.space.jobs.exports import predicted_megabytes
from hifa.space.ui.gallery import FILES, examples


# Faces, texels per side and bytes of GLBs of "an orange car" and "a gray teddy bear", optimized with Toybox.
MEASURED = (
    (1000, 256, 120_588), (1000, 256, 119_428), (3000, 256, 207_168), (3000, 256, 215_140), (5000, 512, 444_008),
    (5000, 512, 452_860), (10_000, 256, 463_352), (10_000, 256, 481_896), (10_000, 1024, 1_081_876),
    (10_000, 1024, 1_072_700), (10_000, 2048, 2_310_380), (10_000, 2048, 2_245_324), (30_000, 1024, 1_733_468),
    (30_000, 1024, 1_750_428),
)  # fmt: skip


@pytest.mark.parametrize("faces, side, size", MEASURED)
def test_it_is_that_of_meshes_that_were_made(faces, side, size):
    assert predicted_megabytes(faces, side) == pytest.approx(size / 1e6, rel=0.3)


ALL = [example for kind in ("text", "image", "hallucination") for example in examples(kind)]


@pytest.mark.parametrize("example", ALL, ids=lambda example: example.path.name)
def test_it_is_that_of_the_finished_examples(example):
    glb = (example.path / FILES["glb"]).read_bytes()
    metadata = example.record.metadata
    described = json.loads(glb[20 : 20 + int.from_bytes(glb[12:16], "little")])  # the first chunk of a GLB
    indices = described["meshes"][0]["primitives"][0]["indices"]
    assert described["accessors"][indices]["count"] == 3 * metadata["faces"]
    assert predicted_megabytes(metadata["faces"], metadata["texture_size"]) == pytest.approx(len(glb) / 1e6, rel=0.3)
