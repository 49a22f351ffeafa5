"""HiFAAsset: pictures, files, round trip, card, empty fields, upload to a local stand-in of the Hub."""

import json
from pathlib import Path

import imageio_ffmpeg
import numpy as np
import pytest
import torch

from benchmarks.mesh_render import render_mesh
from hifa import HiFAAsset, HiFAConfig, HiFARun
from hifa.asset import ASSET_FILE, AssetError
from hifa.cameras import camera_to_world, image_rays, sample_camera
from hifa.export.mesh import EmptyFieldError
from hifa.losses import z_variance_loss
from hifa.rendering.image import backpropagate
from hifa.toybox import world
from hifa.toybox.render import render


@pytest.fixture(scope="module")
def bear() -> HiFAAsset:
    """A field fitted to true pictures of a teddy bear, as good as a run gets, in a few seconds."""
    scene, generator = world.make_scene("teddy bear", "blue"), torch.Generator().manual_seed(0)
    config = HiFAConfig.fast(num_inference_steps=160)
    run = HiFARun.begin("a blue teddy bear", config, generator=generator, prior="truth")
    for step in range(160):
        if step % 8 == 0:
            run.grid.refresh(run.radiance_field)
        camera = sample_camera(generator, radius=(2.5, 2.5), fov_deg=(40, 40), elevation_deg=(-10, 75))
        pose, size = camera_to_world(camera), 40
        # A background that changes keeps the field from painting it on the object.
        flat = torch.rand(3, generator=generator)
        truth = torch.from_numpy(render(scene.shape, pose.numpy(), size, 40.0, flat.tolist()).color).view(-1, 3)
        rays = image_rays(pose, 40.0, size)

        def loss_of(seen, truth=truth, step=step):
            return 10 * ((seen.color - truth) ** 2).sum() + step / 50 * z_variance_loss(seen.z_variance, seen.opacity)

        run.optimizer.zero_grad()
        backpropagate(
            run.radiance_field, rays, run.sampling, loss_of, background=flat, chunk=4096,
            offsets=torch.rand(len(rays), 2, generator=generator),
        )  # fmt: skip
        run.optimizer.step()
        run.step += 1
    return run.asset()


def test_glb_agrees_with_the_field_from_four_sides(bear, tmp_path):
    path = bear.export_mesh(tmp_path / "bear.glb", resolution=96)
    for azimuth in (0, 90, 180, 270):
        camera = bear.camera(azimuth)
        color, mask = render_mesh(path, camera_to_world(camera).numpy(), 96, camera.fov_deg)
        seen = bear.render(camera, 96)
        opaque = seen.opacity.numpy() > 0.5
        mask = mask > 0.5
        assert (mask & opaque).sum() / (mask | opaque).sum() >= 0.9
        both = mask & opaque
        assert np.abs(color[both] - seen.color.numpy()[both]).mean() < 0.06


def test_pictures(bear):
    front, back = bear.render(bear.camera(0), 64), bear.render(bear.camera(180), 64)
    assert front.color.shape == (64, 64, 3) and 0 <= front.color.min() and front.color.max() <= 1
    # The belly is cream-colored, all else is blue, and it is in front only.
    cream = [((p.color[..., 0] > 0.6) & (p.opacity > 0.9)).sum().item() for p in (front, back)]
    assert cream[0] > 20 and cream[1] == 0
    hit = front.opacity > 0.9
    assert torch.allclose(front.disparity[hit], 1 / front.depth[hit])
    assert 1.5 < front.depth[hit].min() and front.depth[hit].max() < 3.5
    assert torch.allclose(front.normals[hit].norm(dim=-1), torch.ones(int(hit.sum())), atol=1e-4)
    # The middle of what is seen from the front faces the camera, which is on +x.
    assert front.normals[hit][:, 0].mean() > 0.4
    assert (front.opacity[0] < 0.05).all() and torch.allclose(front.color[0, 0], torch.ones(3), atol=0.05)


def test_turntable_turns(bear):
    frames = bear.turntable(4, 24)
    assert frames.shape == (4, 24, 24, 3)
    torch.testing.assert_close(frames[1], bear.render(bear.camera(90), 24).color)


def test_video_and_stills(bear, tmp_path):
    bear.export_video(tmp_path / "turn.mp4", num_frames=5, size=32, fps=10)
    reader = imageio_ffmpeg.read_frames(str(tmp_path / "turn.mp4"))
    metadata = next(reader)
    assert metadata["size"] == (64, 32) and metadata["codec"] == "h264" and "yuv420p" in metadata["pix_fmt"]
    assert len(list(reader)) == 5
    bear.export_stills(tmp_path, size=32)
    assert {"front.png", "side.png", "back.png", "depth.png"} <= {p.name for p in tmp_path.iterdir()}


def test_save_and_load(bear, tmp_path):
    bear.save_pretrained(tmp_path)
    again = HiFAAsset.from_pretrained(tmp_path)
    torch.testing.assert_close(again.render(size=24).color, bear.render(size=24).color, rtol=0, atol=0)
    assert again.metadata == json.loads(json.dumps(bear.metadata))
    card = (tmp_path / "README.md").read_text()
    assert "a blue teddy bear" in card and 'HiFAAsset.from_pretrained(".")' in card and card.startswith("---")
    assert not any(name in card for name in ("this/repository", "turntable.mp4", "front.png", "mesh.glb` "))
    (tmp_path / ASSET_FILE).unlink()
    with pytest.raises(AssetError, match="holds no HiFA asset"):
        HiFAAsset.from_pretrained(tmp_path)


@pytest.mark.parametrize("name", ["/no/such/folder", "no folder", "../gone"])
def test_a_folder_that_is_not_there(name):
    with pytest.raises(AssetError, match=f"'{name}' is not a local folder"):
        HiFAAsset.from_pretrained(name)


@pytest.mark.parametrize("broken", ["README.md", ASSET_FILE])
def test_a_save_that_is_cut_short_leaves_the_last_one(bear, tmp_path, monkeypatch, broken):
    bear.save_pretrained(tmp_path)
    before, write_text = (tmp_path / broken).read_text(), Path.write_text

    def cut_short(path: Path, text: str, **kwargs) -> int:
        if Path(broken).stem in path.name:  # of the unfinished file, which has a name of its own
            write_text(path, text[:10], **kwargs)
            raise OSError("no space left")
        return write_text(path, text, **kwargs)

    monkeypatch.setattr(Path, "write_text", cut_short)
    with pytest.raises(AssetError, match="no space left"):
        bear.save_pretrained(tmp_path)
    assert (tmp_path / broken).read_text() == before
    assert HiFAAsset.from_pretrained(tmp_path).prompt == "a blue teddy bear"


def test_empty_field_says_so(bear, tmp_path):
    run = HiFARun.begin("x", HiFAConfig.fast(), generator=torch.Generator(), prior="none")
    with torch.no_grad():
        run.radiance_field.density_net[-1].bias[0] = -20
    with pytest.raises(EmptyFieldError, match="density"):
        run.asset().export_mesh(tmp_path / "nothing.glb")
    with pytest.raises(ValueError, match="stl"):
        bear.export_mesh(tmp_path / "bear.stl")
