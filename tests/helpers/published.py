"""Tiny random models with the real classes of published ones: DeepFloyd IF and Stable Diffusion XL."""

import torch
from diffusers import (
    AutoencoderKL,
    DDPMScheduler,
    EulerDiscreteScheduler,
    IFPipeline,
    StableDiffusionXLPipeline,
    UNet2DConditionModel,
)
from transformers import CLIPTextConfig, CLIPTextModel, CLIPTextModelWithProjection, T5Config, T5EncoderModel

from hifa.toybox.models import MAX_TOKENS, build_tokenizer


def build_if(sample_size: int = 16) -> IFPipeline:
    """Build IF's blocks, attention, six output channels and scheduler, with hardly any weights."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        tokenizer = build_tokenizer()
        text_encoder = T5EncoderModel(
            T5Config(vocab_size=len(tokenizer), d_model=32, d_kv=8, d_ff=32, num_layers=1, num_heads=2, pad_token_id=2)
        )
        unet = UNet2DConditionModel(
            sample_size=sample_size,
            layers_per_block=1,
            block_out_channels=(32, 64),
            down_block_types=("ResnetDownsampleBlock2D", "SimpleCrossAttnDownBlock2D"),
            mid_block_type="UNetMidBlock2DSimpleCrossAttn",
            up_block_types=("SimpleCrossAttnUpBlock2D", "ResnetUpsampleBlock2D"),
            in_channels=3,
            out_channels=6,
            cross_attention_dim=32,
            encoder_hid_dim=32,
            attention_head_dim=8,
            addition_embed_type="text",
            addition_embed_type_num_heads=2,
            cross_attention_norm="group_norm",
            resnet_time_scale_shift="scale_shift",
            act_fn="gelu",
        )
    scheduler = DDPMScheduler(
        beta_schedule="squaredcos_cap_v2",
        thresholding=True,
        dynamic_thresholding_ratio=0.95,
        sample_max_value=1.5,
        prediction_type="epsilon",
        variance_type="learned_range",
    )
    return IFPipeline(
        tokenizer=tokenizer, text_encoder=text_encoder.eval(), unet=unet.eval(), scheduler=scheduler,
        safety_checker=None, feature_extractor=None, watermarker=None, requires_safety_checker=False,
    )  # fmt: skip


SMALL = dict(num_inference_steps=3, n_coarse=8, n_fine=8, levels=4, max_resolution=32, log2_hashmap_size=10)
TEXT_DIM, POOLED_DIM, TIME_DIM = 16, 24, 8


def text_config(words: int, **changes) -> CLIPTextConfig:
    return CLIPTextConfig(
        vocab_size=words, hidden_size=TEXT_DIM, intermediate_size=32, num_hidden_layers=2, num_attention_heads=2,
        max_position_embeddings=MAX_TOKENS, bos_token_id=1, eos_token_id=2, pad_token_id=2, **changes,
    )  # fmt: skip


def build_unet(**changes) -> UNet2DConditionModel:
    settings = dict(
        sample_size=8, block_out_channels=(8, 16), layers_per_block=1, norm_num_groups=4,
        down_block_types=("DownBlock2D", "CrossAttnDownBlock2D"),
        up_block_types=("CrossAttnUpBlock2D", "UpBlock2D"), attention_head_dim=(2, 4),
        transformer_layers_per_block=(1, 2), use_linear_projection=True, cross_attention_dim=2 * TEXT_DIM,
        addition_embed_type="text_time", addition_time_embed_dim=TIME_DIM,
        projection_class_embeddings_input_dim=6 * TIME_DIM + POOLED_DIM,
    )  # fmt: skip
    return UNet2DConditionModel(**(settings | changes))


def build_sdxl(**unet_changes) -> StableDiffusionXLPipeline:
    """Build SDXL's blocks, attention, embeddings and scheduler, with hardly any weights."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        tokenizer = build_tokenizer()
        encoder = CLIPTextModel(text_config(len(tokenizer)))
        encoder_2 = CLIPTextModelWithProjection(text_config(len(tokenizer), projection_dim=POOLED_DIM))
        unet = build_unet(**unet_changes)
        vae = AutoencoderKL(
            sample_size=32, block_out_channels=(8, 8, 8), down_block_types=("DownEncoderBlock2D",) * 3,
            up_block_types=("UpDecoderBlock2D",) * 3, norm_num_groups=4, scaling_factor=0.13025, force_upcast=True,
        )  # fmt: skip
    scheduler = EulerDiscreteScheduler(
        beta_start=0.00085, beta_end=0.012, beta_schedule="scaled_linear", steps_offset=1, timestep_spacing="leading"
    )
    return StableDiffusionXLPipeline(
        vae=vae, text_encoder=encoder.eval(), text_encoder_2=encoder_2.eval(), tokenizer=tokenizer,
        tokenizer_2=build_tokenizer(), unet=unet.eval(), scheduler=scheduler, add_watermarker=False,
    )  # fmt: skip
