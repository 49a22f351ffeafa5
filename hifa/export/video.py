"""Video files of rendered frames, and conversion of normals and depth to colors."""

import contextlib
import os
import subprocess
import tempfile
from collections.abc import Iterable
from pathlib import Path
from typing import IO, cast

import imageio_ffmpeg
import numpy as np

from .files import atomically


# From far (dark) to near (light), readable also in grayscale: six colors of magma by Smith and van der Walt.
DEPTH_COLORS = np.array(
    [
        (0.08, 0.05, 0.21),
        (0.32, 0.07, 0.49),
        (0.59, 0.17, 0.50),
        (0.87, 0.29, 0.41),
        (0.99, 0.56, 0.41),
        (0.99, 0.93, 0.70),
    ]
)
# Without tags, players guess the color matrix from the height of the video, and colors shift.
BT709 = ["-colorspace", "bt709", "-color_primaries", "bt709", "-color_trc", "bt709"]


def write_video(path: str | os.PathLike, frames: Iterable[np.ndarray], fps: float = 30, crf: int = 18) -> Path:
    """Write frames as H.264 video in yuv420p, which every browser plays.

    The index is at the start of the file, so that playback starts at once.

    Args:
        path: An .mp4 file in an existing folder. The file appears only when it is complete.
        frames: `(H, W, 3)` each, uint8 or float in [0, 1], all of one size. Frames are read one at a time. An odd
            height or width is made even by repeating the last row or column.
        fps: Frames per second.
        crf: Constant rate factor of x264: 0 is lossless, 18 is visually lossless, 51 is the worst quality.

    Raises:
        ValueError: If there is no frame, or a frame does not have the shape `(H, W, 3)` or the shape of the first
            frame.
        OSError: If `path` cannot be written or ffmpeg fails.
    """
    encoder, shape = None, None
    with atomically(path) as partial:
        try:
            for frame in frames:
                frame = np.asarray(frame)
                shape = shape or frame.shape
                if frame.ndim != 3 or frame.shape[2] != 3 or frame.shape != shape:
                    raise ValueError(f"All frames must be (H, W, 3) like the first frame, {shape}, got {frame.shape}.")
                picture = _even(_bytes(frame))
                if encoder is None:
                    encoder = _Encoder(partial, picture.shape[1::-1], fps, crf)
                encoder.send(picture)
            if encoder is None:
                raise ValueError("A video needs at least one frame.")
            encoder.finish()
        finally:
            if encoder is not None:
                encoder.stop()
    return Path(path)


def normal_to_rgb(normals: np.ndarray, opacity: np.ndarray) -> np.ndarray:
    """Convert normals to colors on white.

    Red, green and blue are x, y and z, and 0.5 stands for 0. A surface that faces the front (+x) is pink. A surface
    that faces up (+z) is light blue.

    Args:
        normals: `(..., 3)` in [-1, 1].
        opacity: `(...)` in [0, 1].

    Returns:
        `(..., 3)` float32 in [0, 1].
    """
    return _on_white(0.5 + 0.5 * np.asarray(normals, np.float32), opacity)


def depth_to_rgb(depth: np.ndarray, opacity: np.ndarray) -> np.ndarray:
    """Convert depth to colors on white. The nearest depth has the lightest color.

    The range of the color map is the depth range of all given pixels that are more than half opaque. Pass all frames
    of a video together to avoid flicker.

    Args:
        depth: `(...)` depth in any unit.
        opacity: `(...)` in [0, 1].

    Returns:
        `(..., 3)` float32 in [0, 1].
    """
    depth, opacity = np.asarray(depth, np.float32), np.asarray(opacity, np.float32)
    shown = depth[opacity > 0.5]
    near, far = (shown.min(), shown.max()) if shown.size else (0.0, 1.0)
    nearness = ((far - depth) / max(far - near, 1e-6)).clip(0, 1)
    stops = np.linspace(0, 1, len(DEPTH_COLORS))
    return _on_white(np.stack([np.interp(nearness, stops, c) for c in DEPTH_COLORS.T], axis=-1), opacity)


def _on_white(color: np.ndarray, opacity: np.ndarray) -> np.ndarray:
    opacity = np.asarray(opacity, np.float32)[..., None]
    return (color * opacity + 1 - opacity).clip(0, 1).astype(np.float32)


def _bytes(frame: np.ndarray) -> np.ndarray:
    return frame if frame.dtype == np.uint8 else np.round(frame.clip(0, 1) * 255).astype(np.uint8)


def _even(picture: np.ndarray) -> np.ndarray:
    """Make both sides even, because yuv420p halves the color resolution along both axes."""
    height, width = picture.shape[:2]
    return np.ascontiguousarray(np.pad(picture, ((0, height % 2), (0, width % 2), (0, 0)), mode="edge"))


class _Encoder:
    """ffmpeg process that takes `(H, W, 3)` bytes by `send`. The file is complete only if `finish` returns.

    imageio_ffmpeg finds the executable, but the writer of imageio_ffmpeg ignores the exit status.
    """

    def __init__(self, path: Path, size: tuple[int, int], fps: float, crf: int):
        self.path = path
        command = [
            _ffmpeg(), "-y", "-loglevel", "error",
            "-f", "rawvideo", "-pix_fmt", "rgb24", "-s", f"{size[0]}x{size[1]}", "-r", f"{fps:.6g}", "-i", "pipe:0",
            "-an", "-c:v", "libx264", "-pix_fmt", "yuv420p", "-crf", str(crf),
            "-vf", "scale=out_color_matrix=bt709:out_range=tv", *BT709, "-movflags", "+faststart",
            f"file:{path}",  # otherwise ffmpeg takes the text before a colon for a protocol
        ]  # fmt: skip
        self._log = tempfile.TemporaryFile()  # noqa: SIM115  closed by `stop`
        try:
            self._process = subprocess.Popen(
                command, stdin=subprocess.PIPE, stdout=subprocess.DEVNULL, stderr=self._log, start_new_session=True
            )  # in a separate session, so that Ctrl-C reaches only the parent process
        except OSError as error:
            self._log.close()
            raise OSError(f"ffmpeg cannot be started ({error.strerror or error}: {command[0]})") from error
        self._input = cast(IO[bytes], self._process.stdin)

    def send(self, picture: np.ndarray) -> None:
        try:
            self._input.write(picture.data)
        except OSError:  # ffmpeg has ended early, and its log has the reason
            self.finish()
            raise

    def finish(self) -> None:
        """Wait until the file is complete.

        Raises:
            OSError: If ffmpeg failed, with the reason from its log, or wrote no video.
        """
        with contextlib.suppress(OSError):
            self._input.close()
        status = self._process.wait()
        if status == 0 and self.path.stat().st_size:
            return
        self._log.seek(0)
        lines = self._log.read().decode(errors="replace").strip().splitlines()
        reason = "; ".join(line.strip() for line in lines[:3]) or "no output was written"
        raise OSError(f"ffmpeg failed with status {status} ({reason.replace(str(self.path), 'the file')})")

    def stop(self) -> None:
        """Kill the process if it is still running."""
        if self._process.poll() is None:
            self._process.kill()
            self._process.wait()
        with contextlib.suppress(OSError):
            self._input.close()
        self._log.close()


def _ffmpeg() -> str:
    """Return the path of the ffmpeg executable. `IMAGEIO_FFMPEG_EXE` overrides the path."""
    try:
        return imageio_ffmpeg.get_ffmpeg_exe()
    except RuntimeError as error:
        raise OSError("ffmpeg was not found; install ffmpeg, or set IMAGEIO_FFMPEG_EXE") from error
