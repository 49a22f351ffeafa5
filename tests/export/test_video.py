"""Videos opened again with ffmpeg, and the colors of normals and depth."""

import imageio_ffmpeg
import numpy as np
import pytest

from hifa.export import depth_to_rgb, normal_to_rgb, write_video


def flat(color, height=48, width=64):
    return np.broadcast_to(np.array(color, np.float32), (height, width, 3))


def reopened(path):
    reader = imageio_ffmpeg.read_frames(str(path))
    metadata = next(reader)
    width, height = metadata["size"]
    return metadata, [np.frombuffer(f, np.uint8).reshape(height, width, 3) for f in reader]


def test_size_rate_format_and_colors(tmp_path):
    colors = [(0.9, 0.1, 0.1), (0.1, 0.8, 0.2), (0.2, 0.2, 0.9), (0.5, 0.5, 0.5)]
    frames = [flat(c) if k % 2 else np.round(flat(c) * 255).astype(np.uint8) for k, c in enumerate(colors * 5)]
    path = write_video(tmp_path / "turn.mp4", iter(frames), fps=10)
    metadata, pictures = reopened(path)
    assert metadata["size"] == (64, 48) and metadata["fps"] == 10 and metadata["codec"] == "h264"
    assert metadata["pix_fmt"].startswith("yuv420p")
    assert imageio_ffmpeg.count_frames_and_secs(str(path)) == (20, pytest.approx(2.0, abs=0.01))
    for picture, color in zip(pictures, colors * 5, strict=True):
        np.testing.assert_allclose(picture[8:-8, 8:-8].mean((0, 1)) / 255, color, atol=0.02)
    # The index comes before the pictures, so that players need not fetch the whole file.
    data = path.read_bytes()
    assert data.index(b"moov") < data.index(b"mdat")


def test_odd_sizes_are_made_even(tmp_path):
    metadata, pictures = reopened(write_video(tmp_path / "odd.mp4", [flat((1, 0, 0), 33, 47)] * 3))
    assert metadata["size"] == (48, 34) and len(pictures) == 3
    assert (pictures[0][-1, :, 0] > 200).all()  # the edge is repeated, not black


def test_errors_leave_no_file(tmp_path):
    with pytest.raises(ValueError, match="at least one frame"):
        write_video(tmp_path / "a.mp4", [])
    with pytest.raises(ValueError, match=r"\(H, W, 3\) like the first frame, \(48, 64, 3\), got \(48, 66, 3\)"):
        write_video(tmp_path / "a.mp4", [flat((0, 0, 0)), flat((0, 0, 0), 48, 66)])
    assert not list(tmp_path.iterdir())
    with pytest.raises(OSError, match="Cannot write .*nowhere/a.mp4: No such file or directory"):
        write_video(tmp_path / "nowhere" / "a.mp4", [flat((0, 0, 0))])


def test_a_relative_path_with_a_colon(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    metadata, pictures = reopened(tmp_path / write_video("a:b.mp4", [flat((1, 0, 0))] * 3))
    assert metadata["codec"] == "h264" and len(pictures) == 3
    assert [path.name for path in tmp_path.iterdir()] == ["a:b.mp4"]


@pytest.mark.parametrize(
    "program, words",
    [
        ("echo Unknown encoder libx264 >&2; exit 1", "status 1 .Unknown encoder libx264"),
        ("cat > /dev/null; echo No space left on device >&2; exit 1", "No space left on device"),
        ("cat > /dev/null; exit 0", "status 0 .no output was written"),
        ("head -c 1000 > /dev/null; kill -9 $$", "status -9"),
    ],
)
@pytest.mark.parametrize("old", [b"", b"an earlier video"])
def test_an_ffmpeg_that_fails_leaves_what_was_there(tmp_path, monkeypatch, program, words, old):
    script, folder = tmp_path / "ffmpeg", tmp_path / "out"
    script.write_text(f'#!/bin/sh\ncase "$*" in *-version*) echo ffmpeg version 7; exit 0;; esac\n{program}\n')
    script.chmod(0o755)
    folder.mkdir()
    if old:
        (folder / "a.mp4").write_bytes(old)
    monkeypatch.setenv("IMAGEIO_FFMPEG_EXE", str(script))
    with pytest.raises(OSError, match=f"Cannot write .*a.mp4: ffmpeg failed with .*{words}"):
        write_video(folder / "a.mp4", [flat((1, 0, 0))] * 30)
    assert [path.read_bytes() for path in folder.iterdir()] == [old] * bool(old)


def test_no_ffmpeg(tmp_path, monkeypatch):
    monkeypatch.setenv("IMAGEIO_FFMPEG_EXE", str(tmp_path / "missing"))
    with pytest.raises(OSError, match="Cannot write .*a.mp4: .*ffmpeg"):
        write_video(tmp_path / "a.mp4", [flat((1, 0, 0))])
    assert not list(tmp_path.iterdir())


def test_normals_as_colors():
    rgb = normal_to_rgb(np.array([[1, 0, 0], [0, 0, -1], [0, 1, 0]]), np.array([1.0, 1.0, 0.0]))
    np.testing.assert_allclose(rgb, [[1, 0.5, 0.5], [0.5, 0.5, 0], [1, 1, 1]])


def test_near_is_light_and_nothing_is_white():
    depth = np.array([[2.0, 2.5, 3.0, 9.0]])
    rgb = depth_to_rgb(depth, np.array([[1.0, 1.0, 1.0, 0.0]]))
    light = rgb.mean(-1)[0]
    assert light[0] > light[1] > light[2] and light[2] < 0.15
    np.testing.assert_allclose(rgb[0, 3], 1.0)
    assert np.isfinite(depth_to_rgb(depth, np.zeros_like(depth))).all()
