"""Independent judge of Toybox images: a small classifier trained only on renders of the world.

    python -m benchmarks.judge --output-dir benchmarks-cache

The command renders training images of all 288 kind-color combinations. These include the combinations that are held
out from the training of the prior, because the judge has to classify them. Then the command trains the judge, which
takes a few minutes on two cores. The command prints one JSON object with the accuracy on new renders. Finished shards
of images are reused, so an interrupted command resumes the rendering. The training always starts from step 0.

This command made the judge in `benchmarks/judge_weights/`. All other benchmarks use this judge by default, so that
their results stay comparable over time. `--judge` selects another folder.

All benchmarks evaluate views in the same way. For a kind in `KINDS_WITH_FRONT`, all four views count. Other kinds look
alike from the front, the side and the back, so only the overhead view counts.
"""

import argparse
import json
import time
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from torch import nn
from torch.nn import functional as F

from hifa.storage.checkpoint import read, write_atomically
from hifa.storage.files import atomically
from hifa.toybox import world
from hifa.toybox.render import orbit_pose, render
from hifa.toybox.training.dataset import (
    CAMERA_RADIUS,
    FOV_DEG,
    SIZE,
    Pictures,
    load_dataset,
    sample_background,
    sample_camera,
)
from hifa.toybox.training.loop import batch_rng, learning_rate


KINDS, COLORS, VIEWS = tuple(world.KINDS), tuple(world.COLORS), world.VIEWS
COMBINATIONS = [(kind, color) for kind in KINDS for color in COLORS]
OVERHEAD = VIEWS.index("overhead view")
HAS_FRONT = torch.tensor([kind in world.KINDS_WITH_FRONT for kind in KINDS])  # (24,)

# First elements of the seed sequences. The training images of the prior have integer seeds below 1,000,000.
TRAINING_SEED, FRESH_SEED = 7_000_000, 8_000_000
TRAINING_SCENES, FRESH_SCENES = 20 * len(COMBINATIONS), 2 * len(COMBINATIONS)
SHARD = 96  # scenes per file
WEIGHTS = "judge.safetensors"
JUDGE = Path(__file__).parent / "judge_weights"  # the committed judge


# Pictures


def camera_for(view: str, rng: np.random.Generator) -> tuple[float, float]:
    """Sample the azimuth and elevation, in degrees, of a training camera that shows `view`."""
    while True:
        azimuth, elevation = sample_camera(rng)
        if world.view_of(azimuth, elevation) == view:
            return azimuth, elevation


def take_picture(
    scene: world.Scene, view: str, rng: np.random.Generator, background: tuple[float, float, float]
) -> np.ndarray:
    """Render a `(64, 64, 3)` uint8 image from a random camera of `view`, at the distances of the training set."""
    pose = orbit_pose(*camera_for(view, rng), CAMERA_RADIUS * rng.uniform(0.96, 1.04))
    return (render(scene.shape, pose, SIZE, FOV_DEG, background).color * 255).round().astype(np.uint8)


def labels_of(kind: str, color: str, view: str) -> tuple[int, int, int, int, int]:
    """Return a row of `dataset.Pictures.labels` for a single object."""
    return KINDS.index(kind), COLORS.index(color), -1, -1, VIEWS.index(view)


def judge_background(rng: np.random.Generator) -> tuple[float, float, float]:
    """Sample a gray of the world or any color, each half of the time. The background thus carries no information."""
    return sample_background(rng) if rng.random() < 0.5 else tuple(rng.random(3).tolist())


def render_scene(seed: int, index: int) -> tuple[np.ndarray, np.ndarray]:
    """Render one object in all four views. `index` cycles through the kind-color combinations.

    Returns:
        Images `(4, 64, 64, 3)` uint8 and labels `(4, 5)`.
    """
    rng = np.random.default_rng([seed, index])
    kind, color = COMBINATIONS[index % len(COMBINATIONS)]
    scene = world.make_scene(kind, color, rng)
    pixels = [take_picture(scene, view, rng, judge_background(rng)) for view in VIEWS]
    return np.stack(pixels), np.array([labels_of(kind, color, view) for view in VIEWS], np.int16)


def _write_shard(task: tuple[Path, int, int, int]) -> None:
    path, seed, first, last = task
    if path.exists():
        return
    pixels, labels = zip(*(render_scene(seed, index) for index in range(first, last)), strict=True)
    with atomically(path) as partial:
        np.savez(partial, pixels=np.concatenate(pixels), labels=np.concatenate(labels))


def make_pictures(folder: Path, seed: int, scenes: int, workers: int) -> Pictures:
    """Render the missing scenes into `folder` in parallel. Load and return all `scenes` scenes."""
    folder.mkdir(parents=True, exist_ok=True)
    firsts = range(0, scenes, SHARD)
    tasks = [(folder / f"{first:06d}.npz", seed, first, min(first + SHARD, scenes)) for first in firsts]
    with ProcessPoolExecutor(workers) as pool:
        for done, _ in enumerate(pool.map(_write_shard, tasks), 1):
            print(f"{folder.name}: {done} of {len(tasks)} shards", flush=True)
    return load_dataset(folder)


def to_unit(pixels: torch.Tensor) -> torch.Tensor:
    """Convert `(B, 64, 64, 3)` uint8 to the input of the judge: `(B, 3, 64, 64)` float in [0, 1]."""
    return pixels.permute(0, 3, 1, 2).float() / 255


def augment(images: torch.Tensor, rng: np.random.Generator) -> torch.Tensor:
    """Randomly mirror, shift, scale, blur and shade images `(B, 3, 64, 64)` in [0, 1], and add noise.

    The blur and the noise imitate images that are decoded from latents or rendered from a radiance field. The changes
    of brightness and contrast are too small to change the name of a color. A mirrored image keeps its kind, color and
    view.
    """

    def uniform(low: float, high: float, *shape: int) -> torch.Tensor:
        return torch.from_numpy(rng.uniform(low, high, (len(images), *shape)).astype(np.float32))

    # Scale by 0.87 to 1.15 and shift by up to 4 pixels. Repeat the border, which is plain background.
    theta = torch.zeros(len(images), 2, 3)
    theta[:, 0, 0] = theta[:, 1, 1] = uniform(0.87, 1.15)
    theta[:, 0, 0] *= uniform(-1, 1).sign()
    theta[:, :, 2] = uniform(-0.125, 0.125, 2)
    grid = F.affine_grid(theta, list(images.shape), align_corners=False)
    images = F.grid_sample(images, grid, padding_mode="border", align_corners=False)
    images = images.lerp(_blur(images), uniform(0, 1, 1, 1, 1))
    images = 0.5 + (images - 0.5) * uniform(0.92, 1.08, 1, 1, 1) + uniform(-0.05, 0.05, 1, 1, 1)
    noise = torch.from_numpy(rng.standard_normal(tuple(images.shape), np.float32))
    return (images + uniform(0, 0.03, 1, 1, 1) * noise).clamp(0, 1)


def _blur(images: torch.Tensor, sigma: float = 1.2) -> torch.Tensor:
    """Apply a separable Gaussian blur with `sigma` in pixels."""
    kernel = torch.exp(-0.5 * (torch.arange(-3.0, 4.0) / sigma) ** 2)
    kernel = (kernel / kernel.sum()).expand(3, 1, 1, 7)
    padded = F.pad(images, (3, 3, 3, 3), mode="replicate")
    return F.conv2d(F.conv2d(padded, kernel, groups=3), kernel.transpose(2, 3), groups=3)


# The classifier


class Verdict(NamedTuple):
    """Predictions of the judge: int64 indices `(B,)` into `KINDS`, `COLORS` and `VIEWS`."""

    kind: torch.Tensor
    color: torch.Tensor
    view: torch.Tensor


class Convolution(nn.Sequential):
    """Convolution, batch norm and ReLU, with a residual connection where the shape stays the same."""

    def __init__(self, inputs: int, outputs: int, stride: int = 1, size: int = 3):
        super().__init__(
            nn.Conv2d(inputs, outputs, size, stride, size // 2, bias=False), nn.BatchNorm2d(outputs), nn.ReLU()
        )
        self.has_shortcut = stride == 1 and inputs == outputs

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x + super().forward(x) if self.has_shortcut else super().forward(x)


class Judge(nn.Module):
    """Classifier of the kind, color and view of 64x64 images. `load_judge` returns the judge in `eval()` mode."""

    def __init__(self):
        super().__init__()
        self.body = nn.Sequential(
            Convolution(3, 32, stride=2, size=5),  # (B, 32, 32, 32)
            Convolution(32, 32),
            Convolution(32, 64, stride=2),  # (B, 64, 16, 16)
            Convolution(64, 64),
            Convolution(64, 128, stride=2),  # (B, 128, 8, 8)
            Convolution(128, 128),
            Convolution(128, 192, stride=2),  # (B, 192, 4, 4)
            Convolution(192, 192),
            # Pool with learned weights. The view depends on the positions of parts, which a mean would discard.
            nn.Conv2d(192, 192, 4, groups=192),  # (B, 192, 1, 1)
            nn.ReLU(),
            nn.Flatten(),
        )
        self.kind = nn.Linear(192, len(KINDS))
        self.color = nn.Linear(192, len(COLORS))
        self.view = nn.Linear(192, len(VIEWS))

    def features(self, images: torch.Tensor) -> torch.Tensor:
        """Return the features `(B, 192)` of RGB images `(B, 3, 64, 64)` in [0, 1]. The features feed the three heads.

        Raises:
            ValueError: If the images have another shape.
        """
        if images.shape[1:] != (3, SIZE, SIZE):
            raise ValueError(f"images must be (B, 3, {SIZE}, {SIZE}), got {tuple(images.shape)}.")
        return self.body(images * 2 - 1)

    def forward(self, images: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """Return the logits of kinds `(B, 24)`, colors `(B, 12)` and views `(B, 4)`."""
        features = self.features(images)
        return self.kind(features), self.color(features), self.view(features)

    @torch.no_grad()
    def verdict(self, images: torch.Tensor) -> Verdict:
        """Return the most likely kind, color and view of `(B, 3, 64, 64)` images in [0, 1].

        The prediction uses the sum of the log-probabilities of an image and its mirror image.
        """
        answers = []
        for part in images.split(256):
            both = zip(self(part), self(part.flip(3)), strict=True)
            answers.append([(seen.log_softmax(1) + mirrored.log_softmax(1)).argmax(1) for seen, mirrored in both])
        return Verdict(*map(torch.cat, zip(*answers, strict=True)))


def view_loss(logits: torch.Tensor, kind: torch.Tensor, view: torch.Tensor) -> torch.Tensor:
    """Return the mean cross-entropy of the views.

    For kinds without a front, the loss only distinguishes the overhead view from all other views.

    Args:
        logits: `(B, 4)`.
        kind: `(B,)` true indices into `KINDS`.
        view: `(B,)` true indices into `VIEWS`.
    """
    log_p = logits.log_softmax(1)
    level = [index for index in range(len(VIEWS)) if index != OVERHEAD]
    rest = log_p[:, level].logsumexp(1)
    named = log_p.gather(1, view[:, None])[:, 0]
    return -torch.where(view_counts(kind, view), named, rest).mean()


def view_counts(kind: torch.Tensor, view: torch.Tensor) -> torch.Tensor:
    """Return `(B,)` bool: whether the view counts for the kind, as described at the top of this file."""
    return HAS_FRONT[kind] | (view == OVERHEAD)


# Training and scoring


def train(pictures: Pictures, steps: int, batch: int, seed: int = 0) -> Iterator[tuple[Judge, float]]:
    """Train a judge. After every step, yield the judge and the loss, which is the sum of three cross-entropies.

    The training does not use the global random state. The result is reproducible with the same images, arguments,
    thread count and CPU type.
    """
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        judge = Judge()
    optimizer = torch.optim.AdamW(judge.parameters(), lr=1e-3, weight_decay=0.02)
    pixels, labels = torch.from_numpy(pictures.pixels), torch.from_numpy(pictures.labels).long()
    # bfloat16 is twice as fast on CPUs that support it, and twenty times slower on other CPUs.
    halves = torch.backends.cpu.get_cpu_capability().startswith("AVX512")
    for step in range(steps):
        rng = batch_rng(seed, step)
        chosen = torch.from_numpy(rng.integers(len(pixels), size=batch))
        kind, color, view = labels[chosen][:, [0, 1, 4]].T
        images = augment(to_unit(pixels[chosen]), rng)
        with torch.autocast("cpu", torch.bfloat16, enabled=halves):
            outputs = judge(images)
        kinds, colors, views = (output.float() for output in outputs)
        loss = F.cross_entropy(kinds, kind) + F.cross_entropy(colors, color) + view_loss(views, kind, view)
        optimizer.param_groups[0]["lr"] = learning_rate(step, steps, peak=2e-3, decay_share=0.6)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        yield judge, loss.item()


def score(verdict: Verdict, labels: np.ndarray) -> dict[str, float]:
    """Return the shares of correct predictions in [0, 1].

    Args:
        verdict: Predictions for n images.
        labels: `(n, 5)` true labels, as in `dataset.Pictures`.

    Returns:
        `kind`, `color`, `kind_and_color`; `view`, over the views that count as described at the top of this file;
        `view_of_front_kinds`, over all views of the kinds with a front.
    """
    kind, color, view = torch.from_numpy(labels).long()[:, [0, 1, 4]].T
    right = {"kind": verdict.kind == kind, "color": verdict.color == color}
    right["kind_and_color"] = right["kind"] & right["color"]
    right["view"] = (verdict.view == view)[view_counts(kind, view)]
    right["view_of_front_kinds"] = (verdict.view == view)[HAS_FRONT[kind]]
    return {name: round(float(hits.float().mean()), 4) for name, hits in right.items()}


def kernel_inception_distance(a: torch.Tensor, b: torch.Tensor) -> float:
    """Return the unbiased squared maximum mean discrepancy between two sets of features.

    If both sets have the same distribution, the value is about 0 and can be negative.

    The formula is eq. 4 of Binkowski et al. 2018 ("Demystifying MMD GANs"), with the cubic kernel
    k(x, y) = (x.y / d + 1)^3 of the kernel inception distance. The features come from the judge instead of Inception,
    so the values are not comparable with published values.

    Args:
        a: `(n, d)` features.
        b: `(m, d)` features.

    Raises:
        ValueError: If the widths differ or a set has fewer than two rows.
    """
    (n, d), m = a.shape, len(b)
    if b.shape[1] != d or n < 2 or m < 2:
        raise ValueError(f"a and b must be (n, d) and (m, d), n, m >= 2; got {tuple(a.shape)} and {tuple(b.shape)}.")
    a, b = a.double(), b.double()  # float64, because the result is a small difference of large sums
    aa, bb, ab = ((x @ y.T / d + 1) ** 3 for x, y in ((a, a), (b, b), (a, b)))
    within_a = (aa.sum() - aa.trace()) / (n * (n - 1))
    within_b = (bb.sum() - bb.trace()) / (m * (m - 1))
    return float(within_a + within_b - 2 * ab.mean())


# Files


def vocabulary() -> dict[str, list[str]]:
    """Return the class names of the three heads, in the order of the logits. The weights file stores these names."""
    return {"kinds": list(KINDS), "colors": list(COLORS), "views": list(VIEWS)}


def load_judge(folder: Path) -> Judge:
    """Load the trained judge of a folder, in `eval()` mode.

    Raises:
        FileNotFoundError: If the folder has no judge.
        ValueError: If the judge was trained on a world with other kinds, colors or views.
    """
    path = folder / WEIGHTS
    if not path.exists():
        raise FileNotFoundError(
            f"No judge at {path}. Train one with: python -m benchmarks.judge --output-dir {folder}"
        )
    tensors, metadata = read(path)
    if metadata["vocabulary"] != vocabulary():
        raise ValueError(f"{path} has {metadata['vocabulary']}, the world has {vocabulary()}. Train the judge again.")
    judge = Judge()
    judge.load_state_dict(tensors)
    return judge.eval()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--output-dir", type=Path, default=Path("benchmarks-cache"))
    parser.add_argument("--steps", type=int, default=3000)
    parser.add_argument("--batch", type=int, default=64)
    parser.add_argument("--workers", type=int, default=2, help="rendering processes")
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args()
    folder, clock = arguments.output_dir, time.time()
    pictures = make_pictures(folder / "judge-pictures", TRAINING_SEED, TRAINING_SCENES, arguments.workers)
    fresh = make_pictures(folder / "judge-pictures-fresh", FRESH_SEED, FRESH_SCENES, arguments.workers)
    rendered, losses = time.time(), []
    for judge, loss in train(pictures, arguments.steps, arguments.batch, arguments.seed):  # noqa: B007  used below
        losses.append(loss)
        if len(losses) % 100 == 0:
            seconds = (time.time() - rendered) / len(losses)
            print(f"step {len(losses)} loss {np.mean(losses[-100:]):.4f} {seconds:.2f} s/step", flush=True)
    accuracy = score(judge.eval().verdict(to_unit(torch.from_numpy(fresh.pixels))), fresh.labels)
    write_atomically(folder / WEIGHTS, judge.state_dict(), {"vocabulary": vocabulary(), "accuracy": accuracy})
    seconds = {"rendering_seconds": round(rendered - clock), "training_seconds": round(time.time() - rendered)}
    print(json.dumps({**accuracy, "fresh_pictures": len(fresh.pixels), **seconds}))


if __name__ == "__main__":
    main()
