"""What diffusers offers to save memory, in runs: distilled and tiled autoencoders, checkpointing, offloading."""

import weakref

import pytest
import torch
from accelerate import cpu_offload
from diffusers import AutoencoderKL, AutoencoderTiny

from benchmarks.memory_arithmetic import LiveBytes
from hifa import HiFAPipeline, PromptEmbeddings
from hifa.priors.latent_diffusion import LatentDiffusionPrior
from tests.helpers.published import build_if, build_sdxl
from tests.helpers.runs import TINY


def tiny_autoencoder() -> AutoencoderTiny:
    """As far down, 4 times, as the autoencoder of the tiny priors."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        blocks = dict(encoder_block_out_channels=(8, 8, 8), decoder_block_out_channels=(8, 8, 8))
        return AutoencoderTiny(num_encoder_blocks=(1, 1, 1), num_decoder_blocks=(1, 1, 1), **blocks)


def quiet(pipe: HiFAPipeline) -> HiFAPipeline:
    pipe.set_progress_bar_config(disable=True)
    return pipe


def losses(pipe: HiFAPipeline, embeddings: PromptEmbeddings | None = None) -> list[float]:
    settings = {"lambda_rgb": 0.1, "density_grid": 0}
    run = pipe.start("a red ball", seed=0, config=TINY, prompt_embeds=embeddings, **settings)
    return [step.losses["loss"] for step in pipe.advance(run)]


def models(pipe: HiFAPipeline) -> set[str]:
    """Names of the components with weights."""
    return {name for name, model in pipe.components.items() if isinstance(model, torch.nn.Module)}


def hooked(pipe: HiFAPipeline) -> set[str]:
    """Names of the components that are offloaded."""
    return {name for name in models(pipe) if hasattr(getattr(pipe, name), "_hf_hook")}


@pytest.fixture
def pipe(tiny_prior):
    return quiet(HiFAPipeline.from_pretrained(tiny_prior))


@pytest.fixture(scope="module")
def folders(tmp_path_factory, tiny_prior):
    """A folder for each family."""
    root = tmp_path_factory.mktemp("families")
    build_sdxl().save_pretrained(root / "sdxl")
    build_if().save_pretrained(root / "if")
    return {"sd": tiny_prior, "sdxl": root / "sdxl", "if": root / "if"}


def image(size: int = 32) -> torch.Tensor:
    return torch.rand(1, 3, size, size, generator=torch.Generator().manual_seed(0)).requires_grad_()


def test_a_distilled_autoencoder_makes_an_asset(tiny_prior, tmp_path):
    pipe = quiet(HiFAPipeline.from_pretrained(tiny_prior, vae=tiny_autoencoder()))
    assert isinstance(pipe.vae, AutoencoderTiny) and pipe.image_size == 32
    output = pipe("a red ball", config=TINY, lambda_rgb=0.1, seed=0, num_frames=1, frame_size=8)
    assert output.assets[0].render(size=8).color.isfinite().all()
    pipe.save_pretrained(tmp_path)
    again = quiet(HiFAPipeline.from_pretrained(tmp_path))
    assert isinstance(again.vae, AutoencoderTiny) and losses(again) == losses(pipe)


def test_latents_of_a_distilled_autoencoder_by_hand(pipe):
    """Its encoder gives what the UNet denoises; its decoder takes it."""
    vae = tiny_autoencoder().requires_grad_(False)
    prior, x = LatentDiffusionPrior(vae, pipe.unet, pipe.scheduler), image()
    z = prior.encode(x)
    torch.testing.assert_close(z, vae.encoder(2 * x - 1))
    torch.testing.assert_close(prior.decode(z), (vae.decoder(z.detach()) / 2 + 0.5).clamp(0, 1))
    direction = torch.randn(x.shape, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    (z**2).sum().backward()
    double = LatentDiffusionPrior(vae.double(), pipe.unet, pipe.scheduler)
    up, down = (vae.encoder(2 * (x.detach().double() + s * direction) - 1) for s in (1e-5, -1e-5))
    slope = ((up**2).sum() - (down**2).sum()) / 2e-5
    assert (x.grad * direction).sum().item() == pytest.approx(slope.item(), rel=1e-3)
    assert double.encode(image()).dtype == torch.float64
    half = LatentDiffusionPrior(vae.bfloat16(), pipe.unet, pipe.scheduler)
    assert half.encode(image()).dtype == torch.float32  # never less


@pytest.mark.parametrize("kind, size, tile", [("full", 32, 16), ("distilled", 96, 64)])
def test_a_tiled_autoencoder_has_a_gradient_everywhere(pipe, kind, size, tile):
    vae = pipe.vae if kind == "full" else tiny_autoencoder().requires_grad_(False)
    prior, x, y = LatentDiffusionPrior(vae, pipe.unet, pipe.scheduler), image(size), image(size)
    whole = prior.encode(x)
    vae.enable_tiling()
    vae.tile_sample_min_size, vae.tile_latent_min_size = tile, tile // 4
    if kind == "distilled":
        vae.spatial_scale_factor = 4  # diffusers takes that of the published ones, 8, from the number of colors
    tiled = prior.encode(y)
    assert tiled.shape == whole.shape and not torch.equal(tiled, whole)
    (whole**2).sum().backward()
    (tiled**2).sum().backward()
    reached = [(grad.abs().sum(1) > 0).float().mean() for grad in (x.grad, y.grad)]
    assert reached[0] > 0.9 and reached[1] > 0.99 * reached[0]
    assert prior.decode(tiled.detach()).shape == (1, 3, size, size)


def test_tiles_with_checkpoints_bound_the_encoder(pipe):
    """As README says: tiles smaller than what the prior sees, and only the graph of one of them at a time."""
    vae, prior = pipe.vae, pipe.make_prior()

    def peak() -> int:
        x = image(128)
        with LiveBytes() as live:
            (prior.encode(x) ** 2).sum().backward()
        assert x.grad.isfinite().all()
        return live.peak

    whole = peak()
    vae.enable_gradient_checkpointing()
    checkpointed = peak()
    vae.enable_tiling()
    vae.tile_sample_min_size, vae.tile_latent_min_size = 32, 8
    assert peak() < 0.6 * checkpointed < 0.6 * whole


def test_slicing_changes_nothing_and_checkpointing_no_gradient(pipe):
    def gradient() -> tuple[torch.Tensor, int]:
        """Of the encoder, and how many numbers were kept for it."""
        kept, x = [0], image()

        def keep(tensor):
            kept[0] += tensor.numel()
            return tensor

        with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
            z = pipe.make_prior().encode(x)
        z.sum().backward()
        return x.grad, kept[0]

    expected, (plain, plenty) = losses(pipe), gradient()
    pipe.vae.enable_slicing()
    pipe.vae.enable_gradient_checkpointing()
    checkpointed, little = gradient()
    assert little < 0.5 * plenty
    torch.testing.assert_close(checkpointed, plain)
    assert losses(pipe) == pytest.approx(expected, rel=1e-3)


@pytest.mark.parametrize("family", ["sd", "sdxl", "if"])
def test_offloading_models_changes_nothing(folders, family):
    expected = losses(HiFAPipeline.from_pretrained(folders[family]))
    pipe = quiet(HiFAPipeline.from_pretrained(folders[family]))
    pipe.enable_model_cpu_offload(device="cpu")
    assert {"unet", "text_encoder"} <= hooked(pipe) == models(pipe)
    assert losses(pipe) == pytest.approx(expected, rel=1e-3)
    output = pipe("a red ball", config=TINY, seed=0, num_frames=1, frame_size=8)
    assert output.runs[0].finished and output.runs[0].device.type == "cpu"


@pytest.mark.parametrize("offloaded", [False, True])
@pytest.mark.parametrize("family", ["sd", "sdxl", "if"])
def test_released_text_encoders_are_gone(folders, family, offloaded):
    """Out of memory, although hooks of the other models knew of them; the others stay offloaded."""
    pipe = quiet(HiFAPipeline.from_pretrained(folders[family]))
    expected = losses(pipe)
    if offloaded:
        pipe.enable_model_cpu_offload(device="cpu")
    embeddings = pipe.encode_prompt("a red ball")
    encoders = [weakref.ref(getattr(pipe, name)) for name in models(pipe) if name.startswith("text_encoder")]
    assert len(encoders) == (2 if family == "sdxl" else 1)
    pipe.release_text_encoder()
    assert not any(encoder() for encoder in encoders)
    assert hooked(pipe) == (models(pipe) if offloaded else set())
    assert losses(pipe, embeddings) == pytest.approx(expected, rel=1e-3)


@pytest.mark.parametrize("family", ["sd", "sdxl", "if"])
def test_offloading_layers_changes_nothing(folders, family):
    """`enable_sequential_cpu_offload` keeps weights on the meta device between the calls of a layer. With a CPU in
    place of the GPU accelerate trips over its own "cpu:0", hence its hooks are set here as diffusers sets them.
    """
    expected = losses(HiFAPipeline.from_pretrained(folders[family]))
    pipe = quiet(HiFAPipeline.from_pretrained(folders[family]))
    for model in pipe.components.values():
        if isinstance(model, torch.nn.Module):
            cpu_offload(model, torch.device("cpu"), offload_buffers=len(model._parameters) > 0)
    assert next(pipe.unet.parameters()).device.type == "meta"
    assert losses(pipe) == pytest.approx(expected, rel=1e-3)
    assert next(pipe.unet.parameters()).device.type == "meta"


def test_an_autoencoder_of_another_model_is_refused_when_it_is_loaded(tiny_prior):
    sixteen = AutoencoderKL(latent_channels=16, block_out_channels=(8,), norm_num_groups=4)
    with pytest.raises(ValueError, match="The UNet takes 4 channels, but the denoised image or latent has 16"):
        HiFAPipeline.from_pretrained(tiny_prior, vae=sixteen)


def test_a_model_that_inpaints_is_refused_when_it_is_loaded(tiny_prior, pipe):
    unet = type(pipe.unet).from_config(pipe.unet.config, in_channels=9)
    with pytest.raises(ValueError, match="takes 9 channels.*inpaints or edits"):
        HiFAPipeline.from_pretrained(tiny_prior, unet=unet)
