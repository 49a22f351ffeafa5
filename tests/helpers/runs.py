"""Settings of tiny runs, and steps that many tests repeat."""

import torch

from hifa import HiFAConfig, HiFARun


TINY = HiFAConfig.fast(
    num_views=0,
    num_inference_steps=3, render_size=16, start_render_size=8, n_coarse=8, n_fine=6, density_grid=8, grid_period=2,
    levels=3, log2_hashmap_size=8, max_resolution=16, hidden_dim=8, lambda_normal=0.0,
    lambda_curvature=0.0,
)  # fmt: skip


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


QUICK = (
    *("--frames", "2", "--frame-size", "32", "--still-size", "32"),
    *("--mesh-resolution", "32", "--texture-size", "128"),
)
VSD = dict(distillation="vsd", guidance_scale=7.5, view_guidance=1.0, lora_lr=1e-2)


def finish(pipe, run) -> HiFARun:
    for _ in pipe.advance(run):
        pass
    return run


def state(run: HiFARun) -> torch.Tensor:
    values = [*run.radiance_field.state_dict().values(), run.grid.values]
    for row in run.optimizer.state_dict()["state"].values():
        values += [row["exp_avg"], row["exp_avg_sq"]]
    return torch.cat([v.detach().flatten().float() for v in values])
