"""Full-size models as they are published, on the meta device: configurations, names of weights, shapes of a step.

No weights are here. `benchmarks/published` has the configurations, the sizes of the weights' files where one is known,
and where both are from. A safetensors file lists every name, type, shape and place of its tensors before their values,
so its size is that of our model's own only if all of this adds up to the same byte: a name more, less or longer would
show, and so would another number of values. It says nothing about what the values are, nor would it see two names of
one length change places. For DeepFloyd IF no size is known: only the numbers of parameters are compared, with those
of its card, 4.3B and 4.8B.

Files with these lists, and holes where the values would be, are loaded by `from_pretrained`: 3 to 20 GB that take no
room on the disk, nor in memory, since they are loaded to the meta device.
"""

import json
import math
import struct
from pathlib import Path

import pytest
import safetensors.torch
import torch
from diffusers import AutoencoderKL
from transformers import CLIPTextModel

from benchmarks.published_models import NAMES, build_part, build_pipeline, read_parts
from hifa.cameras import VIEWS
from hifa.losses import sds_plus_loss
from hifa.priors.prompt_embeddings import PromptEmbeddings
from hifa.priors.prompt_guidance import classifier_free
from hifa.priors.sdxl import is_sdxl, pooled_dim
from tests.helpers.published import text_config


ROWS = 2 + len(VIEWS)
OLD_ATTENTION = {"to_q": "query", "to_k": "key", "to_v": "value", "to_out.0": "proj_attn"}
POSITIONS = ("text_model.embeddings.position_ids", "I64", (1, 77))
WIDTHS = {"F32": 4, "I64": 8}


@pytest.fixture(scope="module", params=NAMES)
def published(request):
    """Name, description and pipeline of a model."""
    return request.param, read_parts(request.param), build_pipeline(request.param)


def published_names(state: dict, names: str) -> list[tuple[str, str, tuple]]:
    """Name, type and shape of each tensor in the file.

    Args:
        names: How they differ from those in memory: `text_model` in front of all, the indices that transformers once
            saved too (`position_ids`), or the names that the autoencoder's attention had (`old attention`).
    """
    entries = []
    for name, tensor in state.items():
        if "text_model" in names:
            name = f"text_model.{name}"
        if names == "old attention" and ".attentions." in name:
            for new, old in OLD_ATTENTION.items():
                name = name.replace(f".{new}.", f".{old}.")
        entries.append((name, "F32", tuple(tensor.shape)))
    return entries + [POSITIONS] * ("position_ids" in names)


def safetensors_bytes(entries: list[tuple[str, str, tuple]], padded: bool) -> int:
    """Size of a safetensors file with these tensors, sorted by name.

    Args:
        padded: Whether its list is filled up to a multiple of 8 bytes, as it is since safetensors 0.3.
    """
    header, values = safetensors_header(entries)
    return 8 + len(header) + (-len(header) % 8 if padded else 0) + values


def safetensors_header(entries: list[tuple[str, str, tuple]]) -> tuple[str, int]:
    """The list of the tensors, sorted by name, and the bytes of their values."""
    header, end = {"__metadata__": {"format": "pt"}}, 0
    for name, kind, shape in sorted(entries):
        start, end = end, end + WIDTHS[kind] * math.prod(shape)
        header[name] = {"dtype": kind, "shape": list(shape), "data_offsets": [start, end]}
    return json.dumps(header, separators=(",", ":")), end


def write_holes(path: Path, entries: list[tuple[str, str, tuple]]) -> None:
    """A safetensors file of these tensors; the file system is told where their values end, but given none."""
    header, values = safetensors_header(entries)
    with open(path, "wb") as file:
        file.write(struct.pack("<Q", len(header)) + header.encode())
        file.truncate(8 + len(header) + values)


def load_published(folder: Path, part: dict, entries: list[tuple[str, str, tuple]]) -> tuple[torch.nn.Module, dict]:
    """A component as its own class loads it from a folder with such a file, and what was said of its keys."""
    module, name = build_part(part), "diffusion_pytorch_model"
    folder.mkdir()
    if part["class"][0] == "transformers":
        module.config.save_pretrained(folder)
        name, on = "model", "meta"
    else:
        module.save_config(folder)
        on = {"": "meta"}
    write_holes(folder / f"{name}.safetensors", entries)
    loaded, said = type(module).from_pretrained(folder, device_map=on, output_loading_info=True)
    return loaded, {key: sorted(values) for key, values in said.items()}


def test_the_size_of_a_file_is_that_of_safetensors():
    tensors = {"b.weight": torch.zeros(3, 5), "a": torch.zeros(()), "c.d": torch.zeros(1, 2, 3)}
    entries = [(name, "F32", tuple(tensor.shape)) for name, tensor in tensors.items()]
    assert safetensors_bytes(entries, True) == len(safetensors.torch.save(tensors, {"format": "pt"}))


def test_the_published_files_hold_exactly_our_weights(published):
    name, parts, pipe = published
    checked = 0
    for component, part in parts.items():
        if "file" in part:
            file, state = part["file"], getattr(pipe, component).state_dict()
            entries = published_names(state, file.get("names", ""))
            assert safetensors_bytes(entries, file["padded"]) == file["bytes"], component
            longer = [*entries[:-1], (entries[-1][0] + "_a_longer_name", *entries[-1][1:])]
            assert safetensors_bytes(longer, file["padded"]) != file["bytes"]
            checked += 1
    assert checked == {"sd15": 3, "sd21": 2, "sdxl": 4, "if1": 0}[name]


@pytest.mark.parametrize("name", NAMES)
def test_the_published_files_load_with_no_key_missing_or_left_over(name, tmp_path):
    parts = {key: part for key, part in read_parts(name).items() if not key.startswith(("scheduler", "tokenizer"))}
    for component, part in parts.items():
        state = build_part(part).state_dict()
        entries = published_names(state, part.get("file", {}).get("names", ""))
        loaded, said = load_published(tmp_path / component, part, entries)
        assert not any(said.values()), (component, said)
        assert {key: value.shape for key, value in loaded.state_dict().items()} == {
            key: value.shape for key, value in state.items()
        }
    assert set(parts) >= {"unet", "text_encoder"}


def test_a_missing_and_a_foreign_key_are_told(tmp_path):
    part = read_parts("sd15")["vae"]
    (name, kind, shape), *others = published_names(build_part(part).state_dict(), part["file"]["names"])
    said = load_published(tmp_path / "vae", part, [(f"{name}_of_another", kind, shape), *others])[1]
    assert said["missing_keys"] == [name] and said["unexpected_keys"] == [f"{name}_of_another"]


def test_the_number_of_parameters(published):
    """To be compared with the papers and cards; SDXL's report says 2.6B and 817M in both text encoders."""
    name, _, pipe = published
    millions = {
        key: round(sum(p.numel() for p in getattr(pipe, key).parameters()) / 1e6)
        for key in ("vae", "text_encoder", "text_encoder_2", "unet")
        if getattr(pipe, key) is not None
    }
    expected = {
        "sd15": {"vae": 84, "text_encoder": 123, "unet": 860},
        "sd21": {"vae": 84, "text_encoder": 340, "unet": 866},
        "sdxl": {"vae": 84, "text_encoder": 123, "text_encoder_2": 695, "unet": 2567},
        "if1": {"text_encoder": 4762, "unet": 4305},
    }
    assert millions == expected[name]


def test_text_encoders_give_what_the_unet_reads(published):
    name, _, pipe = published
    ids = torch.zeros(1, 77, dtype=torch.long, device="meta")
    width = pipe.text_encoder(ids)[0].shape[-1]
    if is_sdxl(pipe.unet):
        output = pipe.text_encoder_2(ids, output_hidden_states=True)
        width += output.hidden_states[-2].shape[-1]
        assert output.text_embeds.shape[-1] == pooled_dim(pipe.unet) == 1280
    assert width == (pipe.unet.config.encoder_hid_dim or pipe.unet.config.cross_attention_dim)
    assert width == {"sd15": 768, "sd21": 1024, "sdxl": 2048, "if1": 4096}[name]


def test_a_step_of_distillation_fits_the_shapes(published):
    """Encoder, guided denoising in several steps, decoder, SDS+ and its gradient, as `distillation_loss` does it."""
    name, _, pipe = published
    prior, size = pipe.make_prior(), {"sd15": 512, "sd21": 768, "sdxl": 1024, "if1": 64}[name]
    assert prior.image_size == size
    assert prior.prediction_type == {"sd21": "v_prediction"}.get(name, "epsilon")
    x = torch.empty(1, 3, size, size, device="meta", requires_grad=True)
    z = prior.encode(x)
    assert z.shape == ((1, 3, 64, 64) if name == "if1" else (1, 4, size // 8, size // 8))
    width = pipe.unet.config.encoder_hid_dim or pipe.unet.config.cross_attention_dim
    pooled = torch.empty(ROWS, pooled_dim(pipe.unet), device="meta") if is_sdxl(pipe.unet) else None
    embeddings = PromptEmbeddings(torch.empty(ROWS, 77, width, device="meta"), pooled)
    guidance = classifier_free(embeddings, 0, 100.0, 1.0, 0.0)
    z_hat = prior.estimate(z, 400, guidance, 0.25, 1.0, torch.Generator().manual_seed(0))
    assert z_hat.shape == z.shape
    x_hat = prior.decode(z_hat)
    assert x_hat is None if name == "if1" else x_hat.shape == x.shape
    sds_plus_loss(z, z_hat, x, x_hat, weight=0.05, lambda_latent=1.0, lambda_rgb=0.1).backward()
    assert x.grad.shape == x.shape


def test_the_schedule_is_that_of_the_checkpoint(published):
    name, parts, pipe = published
    ours, theirs = pipe.scheduler, build_part(parts["scheduler"])
    assert torch.equal(ours.alphas_cumprod, theirs.alphas_cumprod) and len(ours.alphas_cumprod) == 1000
    assert ours.config.thresholding is (name == "if1") and (name == "if1" or not ours.config.clip_sample)


def test_text_encoders_load_under_their_published_names(tmp_path):
    """`text_model` in front of all names, and the indices beside them: nothing is missing, nothing is left over."""
    with torch.random.fork_rng():
        model = CLIPTextModel(text_config(30))
    model.save_pretrained(tmp_path)
    state = {f"text_model.{name}": tensor for name, tensor in model.state_dict().items()}
    state["text_model.embeddings.position_ids"] = torch.arange(24)[None]
    safetensors.torch.save_file(state, tmp_path / "model.safetensors", {"format": "pt"})
    again, report = CLIPTextModel.from_pretrained(tmp_path, output_loading_info=True)
    assert not report["missing_keys"] and not report["unexpected_keys"] and not report["mismatched_keys"]
    assert all(torch.equal(tensor, again.state_dict()[name]) for name, tensor in model.state_dict().items())


def test_the_autoencoder_loads_under_its_published_names(tmp_path):
    """Stable Diffusion 1.5 still has the old names of attention."""
    with torch.random.fork_rng():
        vae = AutoencoderKL(block_out_channels=(8,), norm_num_groups=4)
    vae.save_pretrained(tmp_path)
    state = dict(
        zip(
            [name for name, *_ in published_names(vae.state_dict(), "old attention")],
            vae.state_dict().values(),
            strict=True,
        )
    )
    assert "encoder.mid_block.attentions.0.proj_attn.weight" in state
    safetensors.torch.save_file(state, tmp_path / "diffusion_pytorch_model.safetensors", {"format": "pt"})
    again, report = AutoencoderKL.from_pretrained(tmp_path, output_loading_info=True)
    assert not report["missing_keys"] and not report["unexpected_keys"] and not report["mismatched_keys"]
    assert all(torch.equal(tensor, again.state_dict()[name]) for name, tensor in vae.state_dict().items())
