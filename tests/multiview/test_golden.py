"""Agreement with numbers computed by the public SyncDreamer (see tests/golden/README.md), stage by stage."""

from types import SimpleNamespace

import numpy as np
import PIL.Image
import pytest
import torch

from hifa.multiview.architecture import build_scheduler
from hifa.multiview.cameras import ViewRing
from hifa.multiview.conditioning import view_embedding
from hifa.multiview.denoiser import VolumeDenoiser, predict
from hifa.multiview.input_image import prepare_image
from tests.helpers.paths import GOLDEN_FOLDER
from tests.helpers.syncdreamer import reference_models


GOLDEN = np.load(GOLDEN_FOLDER / "syncdreamer_reference.npz")
TOLERANCE = 1e-4  # of the largest value of a stage
TIMESTEP, VIEWS = 481, [0, 5]


def rnd(seed: int, *shape: int) -> torch.Tensor:
    return torch.from_numpy(np.random.RandomState(seed).standard_normal(shape).astype(np.float32))


def check(name: str, value: torch.Tensor) -> None:
    expected = torch.from_numpy(np.asarray(GOLDEN[name])).double()
    assert value.shape == expected.shape
    error = ((value.double() - expected).abs().max() / expected.abs().max()).item()
    print(f"{name}: {error:.1e}")
    assert error < TOLERANCE, f"{name} is off by {error:.1e} of its largest value"


def statistics(x: torch.Tensor) -> torch.Tensor:
    return torch.stack([x.mean(), x.std(), x.abs().max()])


@pytest.fixture(scope="module")
def stages() -> SimpleNamespace:
    """All stages of one denoising step with a batch of one, elevation 10 degrees."""
    models = reference_models()
    volume, conditioner = models["volume"], models["conditioner"]
    s = SimpleNamespace(models=models, x=rnd(1, 1, 16, 4, 32, 32))
    with torch.no_grad():
        s.v_embed = view_embedding(10.0, ViewRing())
        s.t_embed = conditioner.embed_time(torch.tensor([TIMESTEP]))
        s.encoded = volume.encoder(s.x[:, 3], s.t_embed, s.v_embed[:, 3])
        s.spatial = volume.spatial_volume(s.x, s.t_embed, s.v_embed)
        s.frustums = volume.frustums(s.spatial, s.t_embed, s.v_embed, torch.tensor([VIEWS]))
        s.context = conditioner.embed_context(rnd(2, 1, 1, 768)[:, 0], s.v_embed[:, VIEWS])
        # The reference divides the scaled latent of the input image by Stable Diffusion's factor.
        picture = rnd(3, 1, 4, 32, 32).expand(2, -1, -1, -1) / 0.18215
        with VolumeDenoiser(models["unet"], models["depth_attention"]) as denoiser:
            s.eps = {
                scale: predict(denoiser, s.x[0, VIEWS], picture, TIMESTEP, s.context, s.frustums, scale)
                for scale in (1.0, 2.0)
            }
    return s


def test_view_embedding():
    check("view_embed_el30_el0", view_embedding(torch.tensor([30.0, 0.0]), ViewRing()))


def test_time_embedding(stages):
    check("t_embed_481", stages.t_embed)


def test_target_view_encoder(stages):
    check("target_encoder_view3", stages.encoded[:, :, ::4, ::4])


def test_spatial_volume(stages):
    check("spatial_volume_s4", stages.spatial[:, ::4, ::4, ::4, ::4])
    check("spatial_volume_stats", statistics(stages.spatial))


@pytest.mark.parametrize("level, size", enumerate([32, 16, 8, 4]))
def test_frustums(stages, level, size):
    features, step = stages.frustums[level], max(1, size // 4)
    check(f"frustum_{size}", features[:, ::16, :: 6 if size > 8 else 2, ::step, ::step])
    check(f"frustum_{size}_stats", statistics(features))


def test_frustum_depth_planes(stages):
    check("frustum_depth_planes", stages.models["volume"].frustum_depths())


def test_context(stages):
    check("context_s8", stages.context[..., ::8])


def test_noise_prediction(stages):
    check("eps_cond", stages.eps[1.0])
    check("eps_cfg2", stages.eps[2.0])


def test_sampler_tables():
    """The tables upstream makes are what diffusers' scheduler computes from its own levels."""
    scheduler = build_scheduler()
    scheduler.set_timesteps(50)
    timesteps = scheduler.timesteps.flip(0)
    assert timesteps.tolist() == GOLDEN["ddim_timesteps"].tolist()
    alphas = scheduler.alphas_cumprod[timesteps]
    before = torch.cat([scheduler.final_alpha_cumprod[None], alphas[:-1]])
    sigmas = torch.stack(
        [scheduler._get_variance(int(t), int(t) - 20) ** 0.5 for t in timesteps]  # what `step` multiplies eta with
    )
    check("ddim_alphas", alphas)
    check("ddim_alphas_prev", before)
    check("ddim_sigmas", sigmas)


def test_one_update(stages):
    scheduler = build_scheduler()
    scheduler.set_timesteps(50)
    noise = rnd(4, 1, 2, 4, 32, 32)
    step = scheduler.step(stages.eps[2.0][None], TIMESTEP, stages.x[:, VIEWS], eta=1.0, variance_noise=noise)
    check("x_prev_idx24", step.prev_sample)


def test_input_preparation():
    image = PIL.Image.open(GOLDEN_FOLDER / "chicken.png")
    check("prepare_chicken_-1_s8", prepare_image(image).movedim(0, -1)[4::8, 4::8])
