"""DeepFloyd IF's stage 2 as a prior: a stock folder of it, tiny, with the real classes, after stage 1."""

from dataclasses import replace

import pytest
import torch
from diffusers import DDPMScheduler, IFSuperResolutionPipeline, UNet2DConditionModel

from hifa import HiFAConfig, HiFAPipeline, HiFARun
from hifa.priors.prompt_guidance import classifier_free
from hifa.priors.super_resolution import NOISE_LEVEL, SuperResolutionPrior
from tests.helpers.published import SMALL, build_if


def build_if2() -> IFSuperResolutionPipeline:
    """As stage 1, with the small image in three more channels and its noise level as a class."""
    stage_1 = build_if()
    with torch.random.fork_rng():
        torch.manual_seed(1)
        unet = UNet2DConditionModel.from_config(
            stage_1.unet.config, in_channels=6, class_embed_type="timestep", sample_size=32
        )
    return IFSuperResolutionPipeline(
        tokenizer=stage_1.tokenizer, text_encoder=stage_1.text_encoder, unet=unet.eval(),
        scheduler=DDPMScheduler.from_config(stage_1.scheduler.config, sample_max_value=1.0),
        image_noising_scheduler=DDPMScheduler(beta_schedule="squaredcos_cap_v2"), safety_checker=None,
        feature_extractor=None, watermarker=None, requires_safety_checker=False,
    )  # fmt: skip


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    """Stage 1 and stage 2."""
    paths = tmp_path_factory.mktemp("if-1"), tmp_path_factory.mktemp("if-2")
    build_if().save_pretrained(paths[0])
    build_if2().save_pretrained(paths[1])
    return paths


@pytest.fixture
def pipe(folders):
    pipe = HiFAPipeline.from_pretrained(folders[1])
    pipe.set_progress_bar_config(disable=True)
    return pipe


def test_a_stock_folder_goes_on_with_a_run_of_stage_1(pipe, folders, tmp_path):
    assert isinstance(pipe.make_prior(), SuperResolutionPrior) and pipe.image_size == 32
    assert pipe.default_config() == HiFAConfig.preview(guidance_scale=4.0)
    stage_1 = HiFAPipeline.from_pretrained(folders[0])
    settings = SMALL | {"num_inference_steps": 4}
    run = stage_1.start("a red ball", seed=0, start_render_size=16, render_size=32, growth_end=0.5, **settings)
    assert len(list(stage_1.advance(run, steps=2))) == 2
    run.config = replace(run.config, guidance_scale=4.0)
    run.save(tmp_path / "run")
    before = run.radiance_field.state_dict()["grid.table"].clone()
    losses = [step.losses["sds"] for step in pipe.advance(run)]
    assert len(losses) == 2 and run.finished
    assert not torch.equal(before, run.radiance_field.state_dict()["grid.table"])
    again = HiFARun.load(tmp_path / "run")
    assert [step.losses["sds"] for step in pipe.advance(again)] == losses
    assert run.asset().render(size=16).color.isfinite().all()


def test_the_small_image_is_noised_as_in_ifs_own_pipeline(pipe):
    """A flat image is its own small version, and a ramp nearly."""
    prior = pipe.make_prior()
    z = torch.full((1, 3, 32, 32), 0.25)
    noise = torch.randn(z.shape, generator=torch.Generator().manual_seed(5))
    expected = DDPMScheduler(beta_schedule="squaredcos_cap_v2").add_noise(z, noise, torch.tensor([NOISE_LEVEL]))
    torch.testing.assert_close(prior.concat_cond(z, torch.Generator().manual_seed(5)), expected)
    ramp = torch.linspace(-1, 1, 32).expand(1, 3, 32, 32)
    clean = prior.concat_cond(ramp, torch.Generator().manual_seed(5)) - (1 - prior.small_alpha_cumprod) ** 0.5 * noise
    shown = clean / prior.small_alpha_cumprod**0.5
    assert (shown - ramp).abs().max() < 2 * 2 / 31 and abs(shown.mean()) < 1e-5  # within two pixels


def test_single_step_estimate_by_hand(pipe):
    """The UNet is shown the noisy image and the small one, and told the level of the latter's noise."""
    prior, t = pipe.make_prior(), 400
    z, embeddings = (
        prior.encode(torch.rand(1, 3, 32, 32, generator=torch.Generator().manual_seed(0))),
        pipe.encode_prompt("a red ball"),
    )
    concat_cond = prior.concat_cond(z, torch.Generator().manual_seed(2))
    noise = torch.randn(z.shape, generator=torch.Generator().manual_seed(1))
    z_t = pipe.scheduler.add_noise(z, noise, torch.tensor([t]))
    both = torch.cat([z_t, concat_cond], 1).expand(2, -1, -1, -1)
    levels = torch.tensor([NOISE_LEVEL] * 2)
    with torch.no_grad():
        output = pipe.unet(both, t, embeddings[[0, 3]].tokens, class_labels=levels).sample[:, :3]
        other = pipe.unet(both, t, embeddings[[0, 3]].tokens, class_labels=levels + 100).sample[:, :3]
    assert not torch.allclose(output, other)
    negative, positive = output.split(1)
    epsilon, alpha = negative + 7 * (positive - negative), float(pipe.scheduler.alphas_cumprod[t])
    clean = (z_t - (1 - alpha) ** 0.5 * epsilon) / alpha**0.5
    guidance = replace(classifier_free(embeddings, 1, 7.0, 1.0, 0.0), concat_cond=concat_cond)
    actual = prior.estimate(z, t, guidance, 1.0, 0.0, torch.Generator().manual_seed(1))
    torch.testing.assert_close(actual, clean.clamp(-1, 1), rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize("distillation", ["sds", "vsd"])
def test_other_methods_show_it_too(pipe, distillation):
    run = pipe.start("a red ball", seed=0, distillation=distillation, render_size=32, start_render_size=32, **SMALL)
    assert all(step.losses["sds"] > 0 for step in pipe.advance(run))


def test_a_unet_that_takes_something_else_is_refused(pipe):
    with torch.random.fork_rng():
        unet = UNet2DConditionModel.from_config(build_if().unet.config, in_channels=6)
    with pytest.raises(ValueError, match="takes 6 channels, but the denoised image or latent has 3"):
        HiFAPipeline(None, pipe.text_encoder, pipe.tokenizer, unet, pipe.scheduler)
