"""Use the Python API for text to 3D.

python -m examples.text_to_3d "a blue car"
"""

# A call of the pipeline returns an output object, or a tuple with `return_dict=False`.
# pyright: reportAttributeAccessIssue=false

import sys

import torch

from hifa import HiFAPipeline


prompt = sys.argv[1] if len(sys.argv) > 1 else "a red mushroom"
pipe = HiFAPipeline.from_pretrained()  # the embedded Toybox prior, or pass a Stable Diffusion Hub ID or folder
output = pipe(prompt, generator=torch.Generator().manual_seed(0))
output.images[0][0].save("front.png")  # the first frame of the turntable
asset = output.assets[0]
asset.export_mesh("asset.glb")
asset.export_video("turntable.mp4")
asset.save_pretrained("asset")
