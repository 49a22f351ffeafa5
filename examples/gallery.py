"""Finished results for the app's gallery: python -m examples.gallery [--only red-mushroom] [--steps 480]

Each result takes one to three minutes of one core and half a megabyte. `examples/gallery/<name>/` holds a GLB, a
turntable and previews. The results are made as in the app, with smaller files. The chicken uses views of SyncDreamer
(`examples/chicken`). The photos use views of the embedded multi-view model.
"""

import argparse
import json
import shutil
from dataclasses import dataclass
from pathlib import Path

import PIL.Image

from hifa import HiFAPipeline
from hifa.export import bake_texture, write_glb
from hifa.optimization.initialization import PREVIEW_GRAY
from hifa.optimization.run import HiFARun
from hifa.space.jobs.models import RECONSTRUCTION_PRESETS, TOYBOX_PRESETS
from hifa.space.jobs.previews import snapshot

from .photos import ELEVATION_DEG
from .photos import FOLDER as PHOTOS


FOLDER = Path(__file__).parent / "gallery"
CHICKEN = Path(__file__).parent / "chicken" / "syncdreamer"
FACES, TEXTURE = 6_000, 256
AZIMUTH_DEG = 20
GUIDANCE_END = 0.5  # initial value in the app


@dataclass(frozen=True)
class Example:
    """Inputs of an example.

    Args:
        prompt: Without a prompt there is no distillation.
        seed: Seed of all randomness.
        views: Folder of sixteen pictures that a model generated.
        photo: Name of a picture in `examples/photos`.
    """

    prompt: str | None = None
    seed: int = 0
    views: Path | None = None
    photo: str | None = None

    @property
    def kind(self) -> str:
        """Tab of the app that shows the example."""
        if self.views is None and self.photo is None:
            return "text"
        return "image" if self.prompt is None else "hallucination"


EXAMPLES = {
    "red-mushroom": Example("a red mushroom"),
    "blue-car": Example("a blue car", 3),
    "brown-teddy-bear": Example("a brown teddy bear"),
    "green-sailboat": Example("a green sailboat"),
    "chicken": Example(views=CHICKEN),
    "red-chair": Example(photo="red-chair"),
    "red-duck": Example("a red duck", photo="yellow-duck"),
}


def make(pipe: HiFAPipeline, name: str, steps: int | None) -> HiFARun:
    """Return the finished run of one example."""
    asked, options = EXAMPLES[name], {}
    if asked.views is not None:
        views = [PIL.Image.open(path) for path in sorted(asked.views.glob("*.png"))]
        options = {"views": views, "hallucinated": True}
    elif asked.photo is not None:
        photo = PIL.Image.open(PHOTOS / f"{asked.photo}.png")
        options = {"image": photo, "elevation_deg": ELEVATION_DEG}
    if asked.kind == "hallucination":
        options["image_guidance_end"] = GUIDANCE_END
    presets = RECONSTRUCTION_PRESETS if asked.kind == "image" else TOYBOX_PRESETS
    steps = steps or next(preset.steps for preset in presets if preset.name == "Standard")
    run = pipe.start(asked.prompt, seed=asked.seed, num_inference_steps=steps, **options)
    for step in pipe.advance(run):
        if step.step % 100 == 0:
            print(f"{name}: step {step.step} of {run.config.num_inference_steps}", flush=True)
    return run


def write(run: HiFARun, kind: str, folder: Path) -> None:
    """Write the files of an example."""
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    asset = run.asset()
    mesh = asset.mesh(128, FACES)
    glb = write_glb(folder / "mesh.glb", bake_texture(mesh, asset.color, TEXTURE))
    asset.export_video(folder / "turntable.mp4", num_frames=24, size=128, fps=10)
    pixels = asset.render(asset.camera(AZIMUTH_DEG), 160, (PREVIEW_GRAY,) * 3).color
    PIL.Image.fromarray((pixels * 255).round().byte().numpy()).save(folder / "preview.jpg", quality=85)
    (folder / "previews.json").write_text(json.dumps(snapshot(run, AZIMUTH_DEG, 160)) + "\n")
    request = {"kind": kind, "prompt": run.prompt or "", "prior": "toybox", "seed": run.seed}
    request["settings"] = {"num_inference_steps": run.step}
    if kind == "hallucination":
        request["settings"]["image_guidance_end"] = run.config.image_guidance_end
    metadata = {"faces": len(mesh.faces), "vertices": len(mesh.vertices), "texture_size": TEXTURE}
    metadata["glb_megabytes"] = round(glb.stat().st_size / 1e6, 3)
    record = {
        "request": request, "step": run.step, "steps": run.step, "loss": run.losses[-1]["loss"],
        "seconds": round(run.seconds, 1), "metadata": metadata,
    }  # fmt: skip
    (folder / "record.json").write_text(json.dumps(record, indent=1) + "\n")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--only", nargs="+", choices=list(EXAMPLES), default=list(EXAMPLES))
    parser.add_argument("--steps", type=int, help="default: the steps of the preset Standard")
    arguments = parser.parse_args()
    pipe = HiFAPipeline.from_pretrained()
    for name in arguments.only:
        write(make(pipe, name, arguments.steps), EXAMPLES[name].kind, FOLDER / name)
        size = sum(file.stat().st_size for file in (FOLDER / name).iterdir())
        print(f"{name}: {size / 1e6:.2f} MB", flush=True)


if __name__ == "__main__":
    main()
