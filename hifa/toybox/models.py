"""Untrained components of the Toybox prior, and their export as a standard Stable Diffusion folder."""

from pathlib import Path

from diffusers import AutoencoderKL, DDIMScheduler, StableDiffusionPipeline, UNet2DConditionModel
from tokenizers import Regex, Tokenizer, models, normalizers, pre_tokenizers, processors
from transformers import CLIPTextConfig, CLIPTextModel, PreTrainedTokenizerFast

from .vocabulary import PUNCTUATION, all_words


MAX_TOKENS = 24
SPECIAL = ["<unk>", "<start>", "<end>"]


def build_tokenizer() -> PreTrainedTokenizerFast:
    """Build a word-level tokenizer: one token per lowercase word.

    Commas are tokens. The characters of `PUNCTUATION` become spaces. As in CLIP, prompts are padded to `MAX_TOKENS`
    with the end token.
    """
    vocabulary = {word: index for index, word in enumerate([*SPECIAL, *all_words()])}
    tokenizer = Tokenizer(models.WordLevel(vocabulary, unk_token="<unk>"))
    tokenizer.normalizer = normalizers.Sequence(
        [normalizers.Lowercase(), normalizers.Replace(Regex(PUNCTUATION), " ")]
    )
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence([pre_tokenizers.WhitespaceSplit(), pre_tokenizers.Punctuation()])
    tokenizer.post_processor = processors.TemplateProcessing(
        single="<start> $A <end>", special_tokens=[("<start>", 1), ("<end>", 2)]
    )
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        unk_token="<unk>",
        bos_token="<start>",
        eos_token="<end>",
        pad_token="<end>",
        model_max_length=MAX_TOKENS,
    )


def build_text_encoder() -> CLIPTextModel:
    """Build the text encoder, a small CLIP text model."""
    return CLIPTextModel(
        CLIPTextConfig(
            vocab_size=len(SPECIAL) + len(all_words()),
            hidden_size=128,
            intermediate_size=256,
            num_hidden_layers=3,
            num_attention_heads=4,
            max_position_embeddings=MAX_TOKENS,
            bos_token_id=1,
            eos_token_id=2,
            pad_token_id=2,
        )
    )


def build_unet() -> UNet2DConditionModel:
    """Build the UNet. Cross-attention is at 8x8 and 4x4 only: at 16x16, its cost on a CPU exceeds its benefit."""
    return UNet2DConditionModel(
        sample_size=16,
        in_channels=4,
        out_channels=4,
        block_out_channels=(64, 96, 128),
        layers_per_block=1,
        down_block_types=("DownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D"),
        up_block_types=("CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D"),
        cross_attention_dim=128,
        attention_head_dim=32,
        norm_num_groups=16,
    )


def build_scheduler() -> DDIMScheduler:
    """Build Stable Diffusion's noise schedule with v-prediction.

    At high noise, v-prediction is far more stable for a small model.
    """
    return DDIMScheduler(
        beta_start=0.00085,
        beta_end=0.012,
        beta_schedule="scaled_linear",
        prediction_type="v_prediction",
        clip_sample=False,
        set_alpha_to_one=False,
        steps_offset=1,
    )


def save_prior(folder: Path, vae: AutoencoderKL, unet: UNet2DConditionModel, text_encoder: CLIPTextModel) -> None:
    """Write a folder that `StableDiffusionPipeline.from_pretrained` reads, in shards of at most 9 MB.

    The autoencoder and the UNet are stored as float16 and load as float32. The small text encoder is stored as
    float32. transformers loads a model in its stored dtype, so a float16 text encoder would not match the other
    components.
    """
    for model in (vae, unet):
        model.register_to_config(_name_or_path="")  # a path on the machine of the training
    pipeline = StableDiffusionPipeline(
        vae=vae.half(),
        text_encoder=text_encoder,
        tokenizer=build_tokenizer(),  # pyright: ignore[reportArgumentType]
        unet=unet.half(),
        scheduler=build_scheduler(),  # pyright: ignore[reportArgumentType]
        safety_checker=None,  # pyright: ignore[reportArgumentType]
        feature_extractor=None,  # pyright: ignore[reportArgumentType]
        requires_safety_checker=False,
    )
    pipeline.save_pretrained(folder, max_shard_size="9MB")
