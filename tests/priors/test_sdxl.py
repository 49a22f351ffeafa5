"""Stable Diffusion XL as a prior: a stock folder of it, tiny, with the real classes."""

from dataclasses import replace

import pytest
import torch
from diffusers import AutoencoderKL, StableDiffusionXLPipeline

from hifa import HiFAConfig, HiFAPipeline, HiFARun, PromptEmbeddings
from hifa.cameras import VIEWS, Camera
from hifa.optimization.distillation import Views, make_distiller
from hifa.priors.prompt_guidance import Guidance, classifier_free
from hifa.priors.sdxl import SDXLPrior
from hifa.toybox.models import MAX_TOKENS
from tests.helpers.published import POOLED_DIM, TEXT_DIM, TIME_DIM, build_sdxl, build_unet


SMALL = dict(
    num_inference_steps=3, render_size=16, start_render_size=16, n_coarse=8, n_fine=8, levels=4, max_resolution=32,
    log2_hashmap_size=10, hidden_dim=8,
)  # fmt: skip


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    path = tmp_path_factory.mktemp("tiny-sdxl")
    build_sdxl().save_pretrained(path)
    return path


@pytest.fixture
def pipe(folder):
    pipe = HiFAPipeline.from_pretrained(folder)
    pipe.set_progress_bar_config(disable=True)
    return pipe


def losses(pipe, run) -> list[float]:
    return [step.losses["loss"] for step in pipe.advance(run)]


def guidance_of(pipe, run, camera: Camera) -> Guidance:
    """Return the guidance of a single view, which does not depend on its pixels."""
    x = torch.zeros(1, 3, 32, 32)
    return make_distiller(run, pipe.make_prior()).guidance(Views(x, x, 500, (camera,)))


def test_a_stock_folder_becomes_an_asset(pipe):
    assert isinstance(pipe.make_prior(), SDXLPrior) and pipe.image_size == 32
    output = pipe("a red ball", generator=torch.Generator().manual_seed(0), num_frames=1, frame_size=16, **SMALL)
    assert output.runs[0].finished and len(output.runs[0].losses) == 3
    assert output.assets[0].render(size=16).color.isfinite().all()


@pytest.mark.parametrize("negative", ["", "a blue cube"])
def test_embeddings_are_those_of_sdxls_own_pipeline(pipe, folder, negative):
    """Penultimate states of both encoders side by side, the second one's pooled output, zeros for no negative."""
    stock = StableDiffusionXLPipeline.from_pretrained(folder)
    embeddings = pipe.encode_prompt("a red ball", negative)
    tokens, pooled = embeddings.tokens, embeddings.pooled
    texts = ["a red ball", *(f"a red ball, {view}" for view in VIEWS)]
    for row, text in enumerate(texts, 1):
        theirs = stock.encode_prompt(text, negative_prompt=negative or None)
        for ours, expected in zip((tokens[row], tokens[0], pooled[row], pooled[0]), theirs, strict=True):
            torch.testing.assert_close(ours, expected[0])
    assert (tokens[0] == 0).all() == (pooled[0] == 0).all() == (negative == "")
    assert tokens.shape == (2 + len(VIEWS), MAX_TOKENS, 2 * TEXT_DIM) and pooled.shape == (2 + len(VIEWS), POOLED_DIM)


def test_a_model_may_ask_for_the_embedding_of_no_words(folder):
    pipe = HiFAPipeline.from_pretrained(folder, force_zeros_for_empty_prompt=False)
    stock = StableDiffusionXLPipeline.from_pretrained(folder)
    theirs = stock.encode_prompt("a red ball", negative_prompt="")
    embeddings = pipe.encode_prompt("a red ball")
    torch.testing.assert_close(embeddings.tokens[0], theirs[1][0])
    torch.testing.assert_close(embeddings.pooled[0], theirs[3][0])
    assert theirs[1].abs().max() > 0


def test_embeddings_can_be_made_without_the_unet(pipe, folder):
    alone = HiFAPipeline.from_pretrained(folder, unet=None, vae=None)
    ours, expected = alone.encode_prompt("a red ball"), pipe.encode_prompt("a red ball")
    assert torch.equal(ours.tokens, expected.tokens) and torch.equal(ours.pooled, expected.pooled)


def test_other_priors_have_no_pooled_embeddings(tiny_prior):
    pipe = HiFAPipeline.from_pretrained(tiny_prior)
    assert pipe.encode_prompt("a red ball").pooled is None
    assert pipe.start("a red ball", **SMALL).embeddings.pooled is None


def test_single_step_estimate_by_hand(pipe):
    """Classifier-free guidance of a UNet that is told embeddings, pooled embeddings and sizes, outside of the code."""
    prior, t = pipe.make_prior(), 400
    z = prior.encode(torch.rand(1, 3, 32, 32, generator=torch.Generator().manual_seed(0)))
    prompts = pipe.encode_prompt("a red ball")[[0, 3]]
    noise = torch.randn(z.shape, generator=torch.Generator().manual_seed(1))
    z_t = pipe.scheduler.add_noise(z, noise, torch.tensor([t]))
    extra = {"text_embeds": prompts.pooled, "time_ids": torch.tensor([[32.0, 32, 0, 0, 32, 32]] * 2)}
    with torch.no_grad():
        outputs = pipe.unet(z_t.expand(2, -1, -1, -1), t, prompts.tokens, added_cond_kwargs=extra).sample
    epsilon, alpha = outputs[:1] + 7 * (outputs[1:] - outputs[:1]), float(pipe.scheduler.alphas_cumprod[t])
    run = pipe.start("a red ball", guidance_scale=7.0, view_guidance=1.0, **SMALL)
    guidance = guidance_of(pipe, run, Camera(azimuth_deg=90, elevation_deg=0))  # a side view, row 3
    actual = prior.estimate(z, t, guidance, 1.0, 0.0, torch.Generator().manual_seed(1))
    expected = (z_t - (1 - alpha) ** 0.5 * epsilon) / alpha**0.5
    torch.testing.assert_close(actual, expected, rtol=1e-3, atol=1e-3)


def test_the_pooled_embedding_and_the_view_matter(pipe):
    prior, z = pipe.make_prior(), torch.zeros(1, 4, 8, 8)
    run = pipe.start("a red ball", **SMALL)

    def estimate(camera):
        return prior.estimate(z, 500, guidance_of(pipe, run, camera), 1.0, 0.0, torch.Generator().manual_seed(0))

    side, front = estimate(Camera(90, 0)), estimate(Camera(0, 0))
    tokens = run.embeddings.tokens
    run.embeddings = replace(run.embeddings, tokens=tokens[:1].expand_as(tokens))  # the words of all views alike
    assert not torch.equal(estimate(Camera(90, 0)), estimate(Camera(0, 0))), "pooled embeddings still tell them apart"
    assert not torch.equal(side, front)


def test_perp_neg_mixes_pooled_embeddings_as_it_mixes_the_others(pipe):
    run = pipe.start("a red ball", perp_neg=2.0, **SMALL)
    guidance = guidance_of(pipe, run, Camera(azimuth_deg=45, elevation_deg=0))  # half way from front to side
    prompts, embeddings = guidance.prompts, run.embeddings
    for asked, rows in ((prompts.tokens, embeddings.tokens), (prompts.pooled, embeddings.pooled)):
        torch.testing.assert_close(asked, torch.stack([rows[0], (rows[2] + rows[3]) / 2, rows[2], rows[3]]))
    assert [step.losses["loss"] for step in pipe.advance(run)] != losses(pipe, pipe.start("a red ball", **SMALL))


def test_save_and_resume_is_bit_for_bit(pipe, tmp_path):
    expected = pipe.start("a red ball", seed=0, **SMALL)
    values = losses(pipe, expected)
    run = pipe.start("a red ball", seed=0, **SMALL)
    next(pipe.advance(run))
    run.save(tmp_path)
    again = HiFARun.load(tmp_path)
    assert torch.equal(again.embeddings.pooled, run.embeddings.pooled)
    assert losses(pipe, again) == values[1:]
    for ours, theirs in zip(again.radiance_field.parameters(), expected.radiance_field.parameters(), strict=True):
        assert torch.equal(ours, theirs)


def test_the_pipeline_saves_and_loads(pipe, tmp_path):
    pipe.save_pretrained(tmp_path)
    again = HiFAPipeline.from_pretrained(tmp_path)
    prompt = "a red ball"
    assert losses(again, again.start(prompt, seed=0, **SMALL)) == losses(pipe, pipe.start(prompt, seed=0, **SMALL))


def test_text_encoders_can_be_released(pipe):
    embeddings = pipe.encode_prompt("a red ball")
    expected = losses(pipe, pipe.start("a red ball", seed=0, **SMALL))
    pipe.release_text_encoder()
    assert pipe.text_encoder is None and pipe.text_encoder_2 is None
    again = pipe.start("a red ball", seed=0, prompt_embeds=embeddings, **SMALL)
    assert losses(pipe, again) == expected
    with pytest.raises(ValueError, match="No text encoder is loaded. Pass prompt_embeds"):
        pipe.start("a red ball")


def test_embeddings_of_another_model_are_refused_before_work(pipe, tiny_prior):
    embeddings = pipe.encode_prompt("a red ball")
    tokens, pooled = embeddings.tokens, embeddings.pooled
    for alone in (tokens, PromptEmbeddings(tokens)):
        with pytest.raises(ValueError, match=r"The pooled part of prompt_embeds must be \(6, 24\).*, got None"):
            pipe.start("a red ball", prompt_embeds=alone)
    with pytest.raises(ValueError, match=r"got \(6, 16\)"):
        pipe.start("a red ball", prompt_embeds=PromptEmbeddings(tokens, pooled[:, :16]))
    with pytest.raises(ValueError, match=r"prompt_embeds must be \(6, tokens, 32\).*got \(2, 24, 32\)"):
        pipe.start("a red ball", prompt_embeds=PromptEmbeddings(tokens[:2], pooled))
    other = HiFAPipeline.from_pretrained(tiny_prior)
    with pytest.raises(ValueError, match="must be None for this model"):
        other.start("a red ball", prompt_embeds=replace(other.encode_prompt("a red ball"), pooled=pooled))
    with pytest.raises(ValueError, match="the run has none. Use the prior that started the run"):
        next(pipe.advance(other.start("a red ball", **SMALL)))


def test_the_autoencoder_stays_in_float32_where_half_would_overflow(folder):
    pipe = HiFAPipeline.from_pretrained(folder, dtype=torch.float16)
    assert (pipe.vae.dtype, pipe.unet.dtype, pipe.text_encoder_2.dtype) == (torch.float32, *(torch.float16,) * 2)
    assert pipe.to(dtype=torch.float16).vae.dtype == torch.float32
    assert pipe.to(dtype=torch.bfloat16).vae.dtype == torch.bfloat16  # which does not overflow
    fixed = AutoencoderKL.from_pretrained(folder, subfolder="vae", force_upcast=False)
    assert HiFAPipeline.from_pretrained(folder, vae=fixed).to(dtype=torch.float16).vae.dtype == torch.float16


def test_the_autoencoder_of_stable_diffusion_goes_to_half(tiny_prior):
    pipe = HiFAPipeline.from_pretrained(tiny_prior, dtype=torch.float16)
    assert pipe.vae.config.force_upcast and pipe.vae.dtype == torch.float16  # diffusers' default, not a statement


def test_half_precision_runs(folder):
    pipe = HiFAPipeline.from_pretrained(folder, dtype=torch.bfloat16)
    run = pipe.start("a red ball", **SMALL)
    assert all(torch.tensor(losses(pipe, run)).isfinite())
    assert run.embeddings.pooled.dtype == torch.float32


def test_the_refiner_is_refused_when_it_is_loaded(tmp_path):
    """It has the second encoder alone, and five numbers beside the pooled embedding."""
    stock = build_sdxl(projection_class_embeddings_input_dim=5 * TIME_DIM + POOLED_DIM)
    stock.register_modules(text_encoder=None, tokenizer=None)
    stock.save_pretrained(tmp_path)
    with pytest.raises(ValueError, match="pooled embedding of 16 numbers, but text_encoder_2 returns 24.*refiner"):
        HiFAPipeline.from_pretrained(tmp_path)


def test_default_settings(pipe):
    assert pipe.default_config() == HiFAConfig.fast(
        num_views=0, lambda_normal=0.0
    )  # as small as Toybox; see below for a large one
    large = HiFAPipeline(
        pipe.vae, pipe.text_encoder, pipe.tokenizer, build_unet(sample_size=128), pipe.scheduler,
        text_encoder_2=pipe.text_encoder_2, tokenizer_2=pipe.tokenizer_2,
    )  # fmt: skip
    assert large.image_size == 512 and large.default_config() == HiFAConfig.preview()


def test_guidance_without_pooled_embeddings_is_refused(pipe):
    guidance = classifier_free(PromptEmbeddings(pipe.encode_prompt("a red ball").tokens), 0, 5.0, 1.0, 0.0)
    with pytest.raises(ValueError, match="pooled"):
        pipe.make_prior().conditions(guidance)


def test_it_can_be_shown_another_size(pipe):
    seen = []

    def watch(module, inputs, keywords):
        seen.append((inputs[0].shape[-1], *keywords["added_cond_kwargs"]["time_ids"][0].tolist()))

    handle = pipe.unet.register_forward_pre_hook(watch, with_kwargs=True)
    run = pipe.start("a red mushroom", seed=0, **SMALL, prior_size=64)
    list(pipe.advance(run, steps=1))
    handle.remove()
    assert set(seen) == {(16, 64, 64, 0, 0, 64, 64)}
    with pytest.raises(ValueError, match="prior_size must be a multiple of 8 for this prior, got 60"):
        pipe.start("a red mushroom", seed=0, **SMALL, prior_size=60)
