"""DeepFloyd IF's stage 1 as a prior: a stock folder of it, tiny, with the real classes."""

import pytest
import torch
from diffusers import IFPipeline

from hifa import HiFAConfig, HiFAPipeline, HiFARun
from hifa.cameras import VIEWS
from hifa.priors.pixel_diffusion import PixelDiffusionPrior, dynamic_threshold
from hifa.priors.prompt_guidance import classifier_free
from tests.helpers.published import SMALL, build_if


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    path = tmp_path_factory.mktemp("tiny-if")
    build_if().save_pretrained(path)
    return path


@pytest.fixture
def pipe(folder):
    pipe = HiFAPipeline.from_pretrained(folder)
    pipe.set_progress_bar_config(disable=True)
    return pipe


def test_a_stock_folder_becomes_an_asset(pipe):
    assert pipe.vae is None and pipe.image_size == 16
    output = pipe("a red ball", generator=torch.Generator().manual_seed(0), num_frames=1, frame_size=16, **SMALL)
    assert output.runs[0].finished and output.runs[0].config.guidance_scale == 20
    assert {"sds", "loss"} <= set(output.runs[0].losses[0])
    assert output.assets[0].render(size=16).color.isfinite().all()


def test_embeddings_are_those_of_ifs_own_pipeline(pipe, folder):
    """IF's pipeline encodes with T5's attention mask, in lower case."""
    stock = IFPipeline.from_pretrained(folder)
    embeds = pipe.encode_prompt(" A Red ball", "a Blue cube").tokens
    texts = ["a blue cube", "a red ball", *(f"a red ball, {view}" for view in VIEWS)]
    stock.tokenizer.model_max_length = 24
    for ours, text in zip(embeds, texts, strict=True):
        tokens = stock.tokenizer(text, padding="max_length", max_length=24, return_tensors="pt")
        theirs = stock.text_encoder(tokens.input_ids, attention_mask=tokens.attention_mask)[0][0]
        torch.testing.assert_close(ours, theirs)
    unmasked = stock.text_encoder(tokens.input_ids)[0][0]
    assert not torch.allclose(embeds[-1], unmasked, atol=1e-3)


def test_single_step_estimate_by_hand(pipe):
    """z_hat from the first three channels of the UNet's output, guided, then limited."""
    prior, t = pipe.make_prior(), 400
    x = torch.rand(1, 3, 16, 16, generator=torch.Generator().manual_seed(0))
    z, embeddings = prior.encode(x), pipe.encode_prompt("a red ball")
    torch.testing.assert_close(z, 2 * x - 1)
    noise = torch.randn(z.shape, generator=torch.Generator().manual_seed(1))
    z_t = pipe.scheduler.add_noise(z, noise, torch.tensor([t]))
    with torch.no_grad():
        negative, positive = pipe.unet(z_t.expand(2, -1, -1, -1), t, embeddings[[0, 3]].tokens).sample[:, :3].split(1)
    epsilon, alpha = negative + 7 * (positive - negative), float(pipe.scheduler.alphas_cumprod[t])
    clean = (z_t - (1 - alpha) ** 0.5 * epsilon) / alpha**0.5
    s = torch.quantile(clean.abs().flatten(), 0.95).clamp(1, 1.5)
    guidance = classifier_free(embeddings, 1, 7.0, 1.0, 0.0)
    actual = prior.estimate(z, t, guidance, 1.0, 0.0, torch.Generator().manual_seed(1))
    torch.testing.assert_close(actual, clean.clamp(-s, s) / s, rtol=1e-3, atol=1e-3)
    assert prior.decode(actual) is None  # the residual in image space would be that in z again


def test_dynamic_threshold_by_hand():
    x = torch.zeros(3, 1, 1, 5)
    x[0, 0, 0] = torch.tensor([-2.0, 0.5, 1.0, 1.2, 4.0])  # absolute values 0.5 1 1.2 2 4: half of them within 1.2
    x[1, 0, 0] = torch.tensor([-0.3, 0.1, 0.2, 0.0, 0.9])  # never less than 1
    x[2, 0, 0] = 10.0  # never more than the largest
    expected = [[-1, 0.5 / 1.2, 1 / 1.2, 1, 1], [-0.3, 0.1, 0.2, 0.0, 0.9], [1.0] * 5]
    torch.testing.assert_close(dynamic_threshold(x, 0.5, 1.5)[:, 0, 0], torch.tensor(expected))


def test_clipping_and_no_limit_follow_the_scheduler(pipe):
    z = torch.full((1, 3, 2, 2), 3.0)
    for thresholding, clip_sample, expected in ((False, True, 1.0), (False, False, 3.0), (True, True, 1.0)):
        scheduler = type(pipe.scheduler).from_config(
            pipe.scheduler.config, thresholding=thresholding, clip_sample=clip_sample
        )
        torch.testing.assert_close(PixelDiffusionPrior(pipe.unet, scheduler).limit(z), torch.full_like(z, expected))


def test_gradient_of_sds_in_pixels(pipe):
    """W (z - z_hat) dz/dx with z = 2 x - 1: the gradient of the rendered colors, by hand."""
    from hifa.losses import sds_plus_loss

    prior, x = pipe.make_prior(), torch.rand(1, 3, 16, 16).requires_grad_()
    z = prior.encode(x)
    z_hat = torch.full_like(z, 0.25)
    sds_plus_loss(z, z_hat, x, prior.decode(z_hat), weight=0.05, lambda_latent=1.0, lambda_rgb=0.1).backward()
    torch.testing.assert_close(x.grad, 0.05 * 2 * (2 * x.detach() - 1 - 0.25))


def test_the_text_encoder_can_be_released(pipe, folder, tmp_path):
    embeddings = pipe.encode_prompt("a red ball")
    tokens = embeddings.tokens
    run = pipe.start("a red ball", seed=0, config=pipe.default_config(), **SMALL)
    expected = [step.losses["loss"] for step in pipe.advance(run)]
    pipe.release_text_encoder()
    assert pipe.text_encoder is None
    again = pipe.start("a red ball", seed=0, prompt_embeds=embeddings, **SMALL)
    assert [step.losses["loss"] for step in pipe.advance(again)] == expected
    again.save(tmp_path / "run")
    assert torch.equal(HiFARun.load(tmp_path / "run").embeddings.tokens, tokens)
    with pytest.raises(ValueError, match="No text encoder is loaded. Pass prompt_embeds"):
        pipe.start("a red ball")
    called = pipe("a red ball", prompt_embeds=tokens, num_frames=1, **SMALL)
    assert torch.equal(called.runs[0].embeddings.tokens, tokens) and called.runs[0].finished
    both = pipe(["a red ball", "a blue cube"], prompt_embeds=[embeddings, 2 * tokens], num_frames=1, **SMALL)
    assert torch.equal(both.runs[1].embeddings.tokens, 2 * tokens)
    for single in (embeddings, tokens):
        with pytest.raises(ValueError, match="prompt_embeds is for one prompt, but there are 2"):
            pipe(["a red ball", "a blue cube"], prompt_embeds=single)
    without = HiFAPipeline.from_pretrained(folder, text_encoder=None, tokenizer=None)
    assert without.start("a red ball", prompt_embeds=tokens, **SMALL).embeddings.tokens.shape == tokens.shape


def test_default_settings_are_for_its_size(pipe):
    config = pipe.default_config()
    assert (config.render_size, config.guidance_scale) == (64, 20) and config != HiFAConfig.preview()


def test_it_is_shown_its_own_size_alone(pipe):
    with pytest.raises(ValueError, match="prior_size is for latent priors.*got 32"):
        pipe.start("a red mushroom", seed=0, prior_size=32)
