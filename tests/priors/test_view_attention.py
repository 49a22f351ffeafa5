"""Attention across views and camera embedding against numbers computed by the public MVDream (see
tests/golden/README.md).
"""

import threading

import numpy as np
import pytest
import torch
from diffusers import UNet2DConditionModel
from diffusers.models.attention import BasicTransformerBlock

from hifa.cameras import Camera, camera_to_world, pose_numbers, ring
from hifa.multiview.mvdream import MVDreamArchitecture, build_models
from hifa.priors.view_attention import (
    AttentionAcrossViews,
    CameraEmbedding,
    across_views,
    check_embedding,
    fresh_embedding,
    self_attentions,
)
from tests.helpers.mvdream import GOLDEN, REDUCED, named_weights, rnd, weights_by_name


TOLERANCE = 1e-4  # of the largest value


def close(name: str, value: torch.Tensor) -> None:
    expected = torch.from_numpy(GOLDEN[name])
    assert value.shape == expected.shape
    error = ((value - expected).abs().max() / expected.abs().max()).item()
    assert error < TOLERANCE, f"{name} is off by {error:.1e} of its largest value"


@pytest.mark.parametrize(
    "name, azimuth, elevation", [("el15_start90", 0, 15), ("el0_start0", -90, 0), ("el30_start37", -53, 30)]
)
def test_poses_of_four_views(name, azimuth, elevation):
    cameras = ring(Camera(azimuth, elevation), 4)
    poses = torch.stack([pose_numbers(camera) for camera in cameras])
    np.testing.assert_allclose(poses, GOLDEN[f"get_camera_{name}"], atol=1e-6)


def test_pose_by_hand():
    sine, cosine = 0.258819, 0.965926
    expected = [0, -sine, cosine, cosine, 1, 0, 0, 0, 0, cosine, sine, sine, 0, 0, 0, 1]
    np.testing.assert_allclose(pose_numbers(Camera(0, 15, 3.7, 25)), expected, atol=1e-5)


def test_poses_of_threestudio():
    for azimuth, elevation, radius, fov, pose, numbers in zip(
        *(GOLDEN[f"ts_{name}"] for name in ("azimuth", "elevation", "camera_distances", "fovy", "c2w", "camera")),
        strict=True,
    ):
        camera = Camera(float(azimuth), float(elevation), float(radius), float(fov))
        np.testing.assert_allclose(pose_numbers(camera), numbers.ravel(), atol=1e-6)
        np.testing.assert_allclose(camera_to_world(camera)[:, 3], pose[:3, 3], atol=1e-5)


def test_a_ring_starts_at_the_camera():
    cameras = ring(Camera(350, 20, 2.2, 33), 4)
    assert [camera.azimuth_deg % 360 for camera in cameras] == [350, 80, 170, 260]
    assert {(camera.elevation_deg, camera.radius, camera.fov_deg) for camera in cameras} == {(20, 2.2, 33)}
    assert ring(Camera(5, 0), 1) == (Camera(5, 0),)


@pytest.fixture(scope="module")
def models():
    return weights_by_name(build_models(REDUCED))


@torch.no_grad()
def test_camera_embedding(models):
    poses = torch.cat([torch.from_numpy(GOLDEN[f"get_camera_{name}"]) for name in ("el15_start90", "el30_start37")])
    close("camera_embed", models["camera_embedding"](poses.float()))


@torch.no_grad()
@pytest.mark.parametrize("views", [4, 1])
def test_block(views):
    block = BasicTransformerBlock(64, 4, 16, cross_attention_dim=24).eval()
    for name, parameter in block.state_dict().items():
        parameter.copy_(torch.from_numpy(named_weights(f"block.{name}", tuple(parameter.shape))))
    block.attn1.processor = AttentionAcrossViews(views)
    close(f"block_out_f{views}", block(rnd(1, 8, 16, 64), encoder_hidden_states=rnd(2, 8, 7, 24)))
    if views == 4:
        close("block_attn1_f4", block.attn1(rnd(1, 8, 16, 64)))


@torch.no_grad()
def test_unet_with_views(models):
    poses = torch.cat([torch.from_numpy(GOLDEN[f"get_camera_{name}"]) for name in ("el15_start90", "el30_start37")])
    x, text, unet = rnd(3, 8, 4, 16, 16), rnd(4, 8, 77, 64), models["unet"]
    with across_views(unet, models["camera_embedding"], 4):
        seen = unet(x, 481, encoder_hidden_states=text, class_labels=poses.float())[0]
    close("unet_out_f4", seen)
    order = torch.tensor([2, 0, 3, 1, 4, 5, 6, 7])  # the views of an object have no order
    with across_views(unet, models["camera_embedding"], 4):
        again = unet(x[order], 481, encoder_hidden_states=text[order], class_labels=poses.float()[order])[0]
    torch.testing.assert_close(again, seen[order], atol=1e-5, rtol=0)


@torch.no_grad()
def test_unet_is_the_2d_model_before_and_after(models):
    unet, x, text = models["unet"], rnd(3, 8, 4, 16, 16)[:2], rnd(4, 8, 77, 64)[:2]
    close("unet_out_2d", unet(x, 481, encoder_hidden_states=text)[0])
    keys = list(unet.state_dict())
    with pytest.raises(RuntimeError, match="stop"), across_views(unet, models["camera_embedding"], 2):
        assert len(unet.state_dict()) > len(keys)
        raise RuntimeError("stop")
    assert list(unet.state_dict()) == keys
    close("unet_out_2d", unet(x, 481, encoder_hidden_states=text)[0])


@torch.no_grad()
def test_one_thread_at_a_time_changes_the_unet(models):
    """Two runs of one pipeline, with four and with two views, get what each of them gets alone."""
    unet, embedding, x, text = models["unet"], models["camera_embedding"], rnd(3, 8, 4, 16, 16), rnd(4, 8, 77, 64)
    poses = torch.stack([pose_numbers(camera) for camera in ring(Camera(0, 15), 4)]).repeat(2, 1)

    def ask(views: int) -> torch.Tensor:
        with torch.no_grad(), across_views(unet, embedding, views):
            return unet(x, 481, encoder_hidden_states=text, class_labels=poses)[0]

    expected, got = {views: ask(views) for views in (2, 4)}, {2: [], 4: []}
    threads = [threading.Thread(target=lambda v=v: got[v].append(ask(v))) for v in (2, 4, 2, 4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    for views, answers in got.items():
        assert len(answers) == 2 and all(torch.equal(answer, expected[views]) for answer in answers)


def test_a_fresh_embedding_adds_nothing(models):
    embedding = fresh_embedding(models["unet"])
    assert not embedding(torch.randn(3, 16)).any()
    check_embedding(models["unet"], embedding)


def test_what_does_not_belong_together_is_refused(models):
    with pytest.raises(
        ValueError, match="camera_embedding has length 64, but the time embedding of the UNet has length 128"
    ):
        check_embedding(models["unet"], CameraEmbedding(64))
    sizes = dict(sample_size=8, block_out_channels=(32, 32), norm_num_groups=8)
    plain = ("DownBlock2D", "DownBlock2D"), ("UpBlock2D", "UpBlock2D")
    without = UNet2DConditionModel(
        **sizes, down_block_types=plain[0], up_block_types=plain[1], mid_block_type="UNetMidBlock2D"
    )
    with pytest.raises(ValueError, match="no self-attention"):
        check_embedding(without, CameraEmbedding(128))
    attention = dict(cross_attention_dim=16, attention_head_dim=2)
    kinds = dict(
        down_block_types=("CrossAttnDownBlock2D", "DownBlock2D"), up_block_types=("UpBlock2D", "CrossAttnUpBlock2D")
    )
    labeled = UNet2DConditionModel(**sizes, **attention, **kinds, num_class_embeds=3)
    with pytest.raises(ValueError, match="already has class embeddings"):
        check_embedding(labeled, CameraEmbedding(128))


def test_every_self_attention_of_the_published_model_sees_the_views():
    with torch.device("meta"):
        unet = build_models(MVDreamArchitecture())["unet"]
    assert len(self_attentions(unet)) == 16
