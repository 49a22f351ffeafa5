"""An independent judge of Toybox pictures: a small classifier that has only ever seen renders of the world.

    python -m benchmarks.judge --output-dir benchmarks-cache

Renders its own pictures (all 288 kind-colour combinations, the never-trained ones too, since it has to judge them),
trains for a few minutes on two cores, and prints one JSON object with its accuracy on unseen renders. Finished shards
of pictures are kept, so an interrupted run resumes; the training itself starts anew.

The judge in `benchmarks/judge_weights/` was made so. All other benchmarks ask this one, unless `--judge` names the
folder of another: figures of different days come from the same eyes.

How a view is counted, everywhere in the benchmarks: pictures of a kind in `KINDS_WITH_FRONT` count with all four
views; the other kinds look alike from the front, the side and the back, so they count for the overhead view only.
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

from hifa.atomic import atomically
from hifa.state import read, write_atomically
from hifa.toybox import world
from hifa.toybox.dataset import CAMERA_RADIUS, FOV_DEG, SIZE, Pictures, load_dataset, sample_background, sample_camera
from hifa.toybox.render import orbit_pose, render
from hifa.toybox.training import batch_rng, learning_rate


KINDS, COLOURS, VIEWS = tuple(world.KINDS), tuple(world.COLOURS), world.VIEWS
COMBINATIONS = [(kind, colour) for kind in KINDS for colour in COLOURS]
OVERHEAD = VIEWS.index("overhead view")
HAS_FRONT = torch.tensor([kind in world.KINDS_WITH_FRONT for kind in KINDS])  # (24,)

# First numbers of the seeds. The prior's pictures have seeds of a single number below 1,000,000.
TRAINING_SEED, FRESH_SEED = 7_000_000, 8_000_000
TRAINING_SCENES, FRESH_SCENES = 20 * len(COMBINATIONS), 2 * len(COMBINATIONS)
SHARD = 96  # scenes a file
WEIGHTS = "judge.safetensors"
JUDGE = Path(__file__).parent / "judge_weights"  # the one that is committed


# Pictures


def camera_for(view: str, rng: np.random.Generator) -> tuple[float, float]:
    """Azimuth and elevation in degrees: the training cameras, limited to those that `view` names."""
    while True:
        azimuth, elevation = sample_camera(rng)
        if world.view_of(azimuth, elevation) == view:
            return azimuth, elevation


def take_picture(scene: world.Scene, view: str, rng: np.random.Generator, background: tuple[float, ...]) -> np.ndarray:
    """A render `(64, 64, 3)` uint8 from a random camera of that view, as far away as in the training set."""
    pose = orbit_pose(*camera_for(view, rng), CAMERA_RADIUS * rng.uniform(0.96, 1.04))
    return (render(scene.shape, pose, SIZE, FOV_DEG, background).colour * 255).round().astype(np.uint8)


def labels_of(kind: str, colour: str, view: str) -> tuple[int, int, int, int, int]:
    """A row of `dataset.Pictures.labels` for a single object."""
    return KINDS.index(kind), COLOURS.index(colour), -1, -1, VIEWS.index(view)


def judge_background(rng: np.random.Generator) -> tuple[float, float, float]:
    """Half of the time the gray of the world, else any colour, so that nothing can be read off the background."""
    return sample_background(rng) if rng.random() < 0.5 else tuple(rng.random(3).tolist())


def render_scene(seed: int, index: int) -> tuple[np.ndarray, np.ndarray]:
    """One object in all four views: `(4, 64, 64, 3)` uint8 and `(4, 5)` labels; combinations take turns."""
    rng = np.random.default_rng([seed, index])
    kind, colour = COMBINATIONS[index % len(COMBINATIONS)]
    scene = world.make_scene(kind, colour, rng)
    pixels = [take_picture(scene, view, rng, judge_background(rng)) for view in VIEWS]
    return np.stack(pixels), np.array([labels_of(kind, colour, view) for view in VIEWS], np.int16)


def _write_shard(task: tuple[Path, int, int, int]) -> None:
    path, seed, first, last = task
    if path.exists():
        return
    pixels, labels = zip(*(render_scene(seed, index) for index in range(first, last)), strict=True)
    with atomically(path) as partial:
        np.savez(partial, pixels=np.concatenate(pixels), labels=np.concatenate(labels))


def make_pictures(folder: Path, seed: int, scenes: int, workers: int) -> Pictures:
    """Render what is missing of `scenes` scenes into `folder`, in parallel, and load all of them."""
    folder.mkdir(parents=True, exist_ok=True)
    firsts = range(0, scenes, SHARD)
    tasks = [(folder / f"{first:06d}.npz", seed, first, min(first + SHARD, scenes)) for first in firsts]
    with ProcessPoolExecutor(workers) as pool:
        for done, _ in enumerate(pool.map(_write_shard, tasks), 1):
            print(f"{folder.name}: {done} of {len(tasks)} shards", flush=True)
    return load_dataset(folder)


def to_unit(pixels: torch.Tensor) -> torch.Tensor:
    """`(B, 64, 64, 3)` uint8 -> `(B, 3, 64, 64)` float in [0, 1], what the judge takes."""
    return pixels.permute(0, 3, 1, 2).float() / 255


def augment(images: torch.Tensor, rng: np.random.Generator) -> torch.Tensor:
    """Mirror, move, scale, soften, shade and roughen each picture a little: `(B, 3, 64, 64)` in [0, 1] -> the same.

    Pictures decoded from latents, or rendered from a radiance field, are softer and noisier than the world's own. The
    jitter of brightness and contrast stays below what would turn one colour name into another. A mirror image keeps
    its kind, colour and view.
    """

    def uniform(low: float, high: float, *shape: int) -> torch.Tensor:
        return torch.from_numpy(rng.uniform(low, high, (len(images), *shape)).astype(np.float32))

    # Scale by 0.87 to 1.15 and shift by up to 4 pixels; the border repeats, and it is flat background.
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
    """Separable Gaussian blur, `sigma` in pixels."""
    kernel = torch.exp(-0.5 * (torch.arange(-3.0, 4.0) / sigma) ** 2)
    kernel = (kernel / kernel.sum()).expand(3, 1, 1, 7)
    padded = F.pad(images, (3, 3, 3, 3), mode="replicate")
    return F.conv2d(F.conv2d(padded, kernel, groups=3), kernel.transpose(2, 3), groups=3)


# The classifier


class Verdict(NamedTuple):
    """What the judge sees: int64 indices `(B,)` into `KINDS`, `COLOURS` and `VIEWS`."""

    kind: torch.Tensor
    colour: torch.Tensor
    view: torch.Tensor


class Convolution(nn.Sequential):
    """Convolution, batch norm, ReLU; with a shortcut where the shape stays the same."""

    def __init__(self, inputs: int, outputs: int, stride: int = 1, size: int = 3):
        super().__init__(
            nn.Conv2d(inputs, outputs, size, stride, size // 2, bias=False), nn.BatchNorm2d(outputs), nn.ReLU()
        )
        self.has_shortcut = stride == 1 and inputs == outputs

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x + super().forward(x) if self.has_shortcut else super().forward(x)


class Judge(nn.Module):
    """Names kind, colour and view of 64x64 pictures. Use it in `eval()` mode, as `load_judge` returns it."""

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
            # Pool with learned weights: a view shows in where things are, which a mean would forget.
            nn.Conv2d(192, 192, 4, groups=192),  # (B, 192, 1, 1)
            nn.ReLU(),
            nn.Flatten(),
        )
        self.kind = nn.Linear(192, len(KINDS))
        self.colour = nn.Linear(192, len(COLOURS))
        self.view = nn.Linear(192, len(VIEWS))

    def features(self, images: torch.Tensor) -> torch.Tensor:
        """`(B, 3, 64, 64)` RGB in [0, 1] -> `(B, 192)`, what the three heads read.

        Raises:
            ValueError: If the pictures have another shape.
        """
        if images.shape[1:] != (3, SIZE, SIZE):
            raise ValueError(f"The judge takes pictures (B, 3, {SIZE}, {SIZE}), got {tuple(images.shape)}.")
        return self.body(images * 2 - 1)

    def forward(self, images: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """Logits `(B, 24)` of kinds, `(B, 12)` of colours and `(B, 4)` of views."""
        features = self.features(images)
        return self.kind(features), self.colour(features), self.view(features)

    @torch.no_grad()
    def verdict(self, images: torch.Tensor) -> Verdict:
        """The likeliest kind, colour and view, given `(B, 3, 64, 64)` pictures in [0, 1] and their mirror images."""
        answers = []
        for part in images.split(256):
            both = zip(self(part), self(part.flip(3)), strict=True)
            answers.append([(seen.log_softmax(1) + mirrored.log_softmax(1)).argmax(1) for seen, mirrored in both])
        return Verdict(*map(torch.cat, zip(*answers, strict=True)))


def view_loss(logits: torch.Tensor, kind: torch.Tensor, view: torch.Tensor) -> torch.Tensor:
    """Mean over the batch of -log p(view), where kinds without a front only choose between overhead and the rest.

    Args:
        logits: `(B, 4)`.
        kind, view: `(B,)` true indices into `KINDS` and `VIEWS`.
    """
    log_p = logits.log_softmax(1)
    level = [index for index in range(len(VIEWS)) if index != OVERHEAD]
    rest = log_p[:, level].logsumexp(1)
    named = log_p.gather(1, view[:, None])[:, 0]
    return -torch.where(view_counts(kind, view), named, rest).mean()


def view_counts(kind: torch.Tensor, view: torch.Tensor) -> torch.Tensor:
    """`(B,)` bool: True where the wanted view can be told for the wanted kind (see the top of this file)."""
    return HAS_FRONT[kind] | (view == OVERHEAD)


# Training and scoring


def train(pictures: Pictures, steps: int, batch: int, seed: int = 0) -> Iterator[tuple[Judge, float]]:
    """Train a judge; yields it with the loss (sum of the three cross-entropies) after every step.

    The global random state is not used; the same pictures, numbers, thread count and kind of CPU give the same judge.
    """
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        judge = Judge()
    optimizer = torch.optim.AdamW(judge.parameters(), lr=1e-3, weight_decay=0.02)
    pixels, labels = torch.from_numpy(pictures.pixels), torch.from_numpy(pictures.labels).long()
    # Twice as fast where the CPU can multiply them, twenty times as slow where it cannot.
    halves = torch.backends.cpu.get_cpu_capability().startswith("AVX512")
    for step in range(steps):
        rng = batch_rng(seed, step)
        chosen = torch.from_numpy(rng.integers(len(pixels), size=batch))
        kind, colour, view = labels[chosen][:, [0, 1, 4]].T
        images = augment(to_unit(pixels[chosen]), rng)
        with torch.autocast("cpu", torch.bfloat16, enabled=halves):
            outputs = judge(images)
        kinds, colours, views = (output.float() for output in outputs)
        loss = F.cross_entropy(kinds, kind) + F.cross_entropy(colours, colour) + view_loss(views, kind, view)
        optimizer.param_groups[0]["lr"] = learning_rate(step, steps, peak=2e-3, decay_share=0.6)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        yield judge, loss.item()


def score(verdict: Verdict, labels: np.ndarray) -> dict[str, float]:
    """Shares of right answers in [0, 1].

    Args:
        verdict: Of n pictures.
        labels: `(n, 5)` rows as in `dataset.Pictures`: what the pictures should show.

    Returns:
        `kind`, `colour`, `view` (counted as the top of this file says), `kind_and_colour`, and `view_of_front_kinds`,
        the view over all four views of the kinds with a front alone.
    """
    kind, colour, view = torch.from_numpy(labels).long()[:, [0, 1, 4]].T
    right = {"kind": verdict.kind == kind, "colour": verdict.colour == colour}
    right["kind_and_colour"] = right["kind"] & right["colour"]
    right["view"] = (verdict.view == view)[view_counts(kind, view)]
    right["view_of_front_kinds"] = (verdict.view == view)[HAS_FRONT[kind]]
    return {name: round(float(hits.float().mean()), 4) for name, hits in right.items()}


def kernel_inception_distance(a: torch.Tensor, b: torch.Tensor) -> float:
    """Unbiased squared maximum mean discrepancy between two sets of features; about 0, even below, if they are alike.

    Binkowski et al. 2018 ("Demystifying MMD GANs"), eq. 4, with the cubic kernel k(x, y) = (x.y / d + 1)^3 of their
    kernel inception distance; here the features are the judge's, not Inception's, so compare only with each other.

    Args:
        a, b: `(n, d)` and `(m, d)` features.

    Raises:
        ValueError: If the widths differ or a set has fewer than two rows.
    """
    (n, d), m = a.shape, len(b)
    if b.shape[1] != d or n < 2 or m < 2:
        raise ValueError(f"Needs (n, d) and (m, d) with n, m >= 2, got {tuple(a.shape)} and {tuple(b.shape)}.")
    a, b = a.double(), b.double()  # differences of large sums
    aa, bb, ab = ((x @ y.T / d + 1) ** 3 for x, y in ((a, a), (b, b), (a, b)))
    within_a = (aa.sum() - aa.trace()) / (n * (n - 1))
    within_b = (bb.sum() - bb.trace()) / (m * (m - 1))
    return float(within_a + within_b - 2 * ab.mean())


# Files


def vocabulary() -> dict[str, list[str]]:
    """The names that the three heads answer with, by order; kept with the weights."""
    return {"kinds": list(KINDS), "colours": list(COLOURS), "views": list(VIEWS)}


def load_judge(folder: Path) -> Judge:
    """The trained judge of a folder, in `eval()` mode.

    Raises:
        FileNotFoundError: If it has not been trained there.
        ValueError: If it was trained on a world with other kinds, colours or views.
    """
    path = folder / WEIGHTS
    if not path.exists():
        raise FileNotFoundError(f"No judge at {path}. Train it: python -m benchmarks.judge --output-dir {folder}")
    tensors, facts = read(path)
    if facts["vocabulary"] != vocabulary():
        raise ValueError(f"{path} knows {facts['vocabulary']}, the world now has {vocabulary()}: train it again.")
    judge = Judge()
    judge.load_state_dict(tensors)
    return judge.eval()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--output-dir", type=Path, default=Path("benchmarks-cache"))
    parser.add_argument("--steps", type=int, default=3000)
    parser.add_argument("--batch", type=int, default=64)
    parser.add_argument("--workers", type=int, default=2, help="processes that render")
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args()
    folder, clock = arguments.output_dir, time.time()
    pictures = make_pictures(folder / "judge-pictures", TRAINING_SEED, TRAINING_SCENES, arguments.workers)
    fresh = make_pictures(folder / "judge-pictures-fresh", FRESH_SEED, FRESH_SCENES, arguments.workers)
    rendered, losses = time.time(), []
    for judge, loss in train(pictures, arguments.steps, arguments.batch, arguments.seed):
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
