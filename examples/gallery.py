"""The finished results that the app shows: python -m examples.gallery [--only red-mushroom] [--steps 480]

Each takes about a minute of one core and 0.2 MB: `examples/gallery/<name>/` with a GLB, a turntable and a preview.
They are made as the app makes them, with smaller files.
"""

import argparse
import json
import shutil
from pathlib import Path

import PIL.Image

from hifa import HiFAPipeline
from hifa.export import bake_texture, write_glb
from hifa.initial import PREVIEW_GRAY
from hifa.run import HiFARun


FOLDER = Path(__file__).parent / "gallery"
CHICKEN = Path(__file__).parent / "chicken" / "syncdreamer"
PROMPTS = {
    "red-mushroom": ("a red mushroom", 0),
    "blue-car": ("a blue car", 3),
    "brown-teddy-bear": ("a brown teddy bear", 0),
    "green-sailboat": ("a green sailboat", 0),
}
FACES, TEXTURE = 3_000, 256


def make(pipe: HiFAPipeline, name: str, steps: int | None) -> HiFARun:
    """The finished run of one example."""
    if name == "chicken":
        views = [PIL.Image.open(path) for path in sorted(CHICKEN.glob("*.png"))]
        run = pipe.start(None, views=views, seed=0, num_inference_steps=steps)
    else:
        prompt, seed = PROMPTS[name]
        run = pipe.start(prompt, seed=seed, num_inference_steps=steps)
    for step in pipe.advance(run):
        if step.step % 100 == 0:
            print(f"{name}: step {step.step} of {run.config.num_inference_steps}", flush=True)
    return run


def write(run: HiFARun, folder: Path) -> None:
    """Its files."""
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    asset = run.asset()
    mesh = asset.mesh(128, FACES)
    glb = write_glb(folder / "mesh.glb", bake_texture(mesh, asset.colour, TEXTURE))
    asset.export_video(folder / "turntable.mp4", num_frames=24, size=128, fps=10)
    pixels = asset.render(asset.camera(20), 160, (PREVIEW_GRAY,) * 3).colour
    PIL.Image.fromarray((pixels * 255).round().byte().numpy()).save(folder / "preview.jpg", quality=85)
    request = {"kind": "text" if run.views is None else "image", "prompt": run.prompt or "", "prior": "toybox"}
    facts = {"faces": len(mesh.faces), "vertices": len(mesh.vertices), "texture_size": TEXTURE}
    facts["glb_megabytes"] = round(glb.stat().st_size / 1e6, 3)
    record = {
        "request": {**request, "seed": run.seed}, "step": run.step, "steps": run.step,
        "loss": run.losses[-1]["loss"], "seconds": round(run.seconds, 1), "facts": facts,
    }  # fmt: skip
    (folder / "record.json").write_text(json.dumps(record, indent=1) + "\n")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--only", nargs="+", choices=[*PROMPTS, "chicken"], default=[*PROMPTS, "chicken"])
    parser.add_argument("--steps", type=int, help="default: those of the preset")
    arguments = parser.parse_args()
    pipe = HiFAPipeline.from_pretrained()
    for name in arguments.only:
        write(make(pipe, name, arguments.steps), FOLDER / name)
        size = sum(file.stat().st_size for file in (FOLDER / name).iterdir())
        print(f"{name}: {size / 1e6:.2f} MB", flush=True)


if __name__ == "__main__":
    main()
