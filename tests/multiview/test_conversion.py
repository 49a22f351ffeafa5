"""The published checkpoint's names: all of them are known, and conversion there and back changes nothing."""

import pytest
import torch
from accelerate import init_empty_weights
from diffusers.loaders.single_file_utils import convert_ldm_unet_checkpoint, convert_ldm_vae_checkpoint
from safetensors.torch import save_file
from torch.nn import functional as F

from hifa.multiview.architecture import build_models
from hifa.multiview.checkpoint import read_checkpoint
from hifa.multiview.conversion import (
    UNUSED,
    check_cameras,
    load_published,
    sources,
    to_published,
)
from tests.helpers.syncdreamer import LAYOUT, TINY, named_weights, tiny_models


@pytest.fixture(scope="module")
def full_size():
    with init_empty_weights():
        return build_models()


def published_file(tmp_path, models, **changes):
    """A file as published, of any size: its own tensors and the unused ones."""
    state = to_published(models) | {key: torch.zeros(1) for key in UNUSED}
    state["poses"] = models["volume"].ring.world_to_camera()
    torch.save({"state_dict": state | changes}, tmp_path / "published.ckpt")
    return tmp_path / "published.ckpt"


def test_every_tensor_of_the_file_is_used_or_named_as_unused(full_size):
    used = {source.key for names in sources(full_size).values() for source in names.values()}
    assert len(LAYOUT) == 1618 and len(UNUSED) == 16
    assert used | set(UNUSED) == set(LAYOUT)
    assert not used & set(UNUSED)


def test_full_size_shapes_fit(full_size):
    published = {key: torch.empty(shape, device="meta") for key, shape in LAYOUT.items() if key != "poses"}
    load_published(full_size, published)  # raises for a misfit
    back = to_published(full_size, LAYOUT)
    assert {key: tuple(tensor.shape) for key, tensor in back.items()} == {
        key: shape for key, shape in LAYOUT.items() if key not in UNUSED
    }


def numbered() -> dict[str, torch.Tensor]:
    """A full-size checkpoint in which every tensor holds its own number; it takes no memory."""
    return {key: torch.tensor(float(i)).expand(shape) for i, (key, shape) in enumerate(LAYOUT.items())}


@pytest.mark.parametrize("part, convert", [("unet", convert_ldm_unet_checkpoint), ("vae", convert_ldm_vae_checkpoint)])
def test_agrees_with_diffusers_conversion(full_size, part, convert):
    published = numbered()
    expected = convert(published, dict(full_size[part].config))
    table = sources({part: full_size[part]})[part]
    assert set(table) == set(expected)
    for name, source in table.items():
        assert published[source.key].flatten()[0] == expected[name].flatten()[0], name


def openai_clip(weights: dict[str, torch.Tensor], image: torch.Tensor, heads: int) -> torch.Tensor:
    """The vision transformer of Radford et al. 2021 on published weights, written down independently."""
    prefix = "clip_image_encoder.model.visual."
    w = {key.removeprefix(prefix): value for key, value in weights.items() if key.startswith(prefix)}

    def norm(x, name):
        return F.layer_norm(x, x.shape[-1:], w[f"{name}.weight"], w[f"{name}.bias"])

    patches = F.conv2d(image, w["conv1.weight"], stride=w["conv1.weight"].shape[-1]).flatten(2).movedim(1, 2)
    x = torch.cat([w["class_embedding"].expand(len(image), 1, -1), patches], 1) + w["positional_embedding"]
    x = norm(x, "ln_pre")
    layers = 1 + max(int(key.split(".")[2]) for key in w if key.startswith("transformer"))
    for block in (f"transformer.resblocks.{i}" for i in range(layers)):
        y = norm(x, f"{block}.ln_1").transpose(0, 1)
        attended, _ = F.multi_head_attention_forward(
            y, y, y, y.shape[-1], heads, w[f"{block}.attn.in_proj_weight"], w[f"{block}.attn.in_proj_bias"], None,
            None, False, 0.0, w[f"{block}.attn.out_proj.weight"], w[f"{block}.attn.out_proj.bias"],
        )  # fmt: skip
        x = x + attended.transpose(0, 1)
        y = F.linear(norm(x, f"{block}.ln_2"), w[f"{block}.mlp.c_fc.weight"], w[f"{block}.mlp.c_fc.bias"])
        y = y * torch.sigmoid(1.702 * y)
        x = x + F.linear(y, w[f"{block}.mlp.c_proj.weight"], w[f"{block}.mlp.c_proj.bias"])
    return norm(x[:, 0], "ln_post") @ w["proj"]


def test_clip_gives_what_the_published_weights_give():
    encoder = tiny_models()["image_encoder"]
    shapes = {key: tuple(tensor.shape) for key, tensor in to_published({"image_encoder": encoder}).items()}
    published = {key: named_weights(key, shape) for key, shape in shapes.items()}
    load_published({"image_encoder": encoder}, published)
    image = torch.randn(2, 3, 16, 16, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        expected = openai_clip(published, image, heads=2)
        torch.testing.assert_close(encoder(image).image_embeds, expected, rtol=1e-5, atol=1e-6)


def test_there_and_back_is_the_identity():
    models, fresh = tiny_models(seed=1), tiny_models(seed=2)
    published = to_published(models)
    load_published(fresh, published)
    for part, model in models.items():
        for name, tensor in model.state_dict().items():
            assert torch.equal(fresh[part].state_dict()[name], tensor), (part, name)
    back = to_published(fresh)
    assert back.keys() == published.keys()
    assert all(torch.equal(back[key], tensor) for key, tensor in published.items())


def test_file_is_read(tmp_path):
    models = tiny_models(seed=3)
    loaded = read_checkpoint(published_file(tmp_path, models), TINY)
    for part, model in models.items():
        assert not loaded[part].training
        assert all(torch.equal(loaded[part].state_dict()[k], v) for k, v in model.state_dict().items())
        assert not any(tensor.is_meta for tensor in [*loaded[part].parameters(), *loaded[part].buffers()])


def test_code_in_a_file_is_not_run(tmp_path):
    class Harm:
        def __reduce__(self):
            return (print, ("harm",))

    torch.save({"state_dict": {"x": Harm()}}, tmp_path / "harm.ckpt")
    with pytest.raises(ValueError, match="harm.ckpt' is damaged or not a checkpoint"):
        read_checkpoint(tmp_path / "harm.ckpt")


@pytest.mark.parametrize("name", ["cut.ckpt", "text.ckpt", "empty.ckpt", "text.safetensors"])
def test_damaged_files_are_refused_in_one_way(tmp_path, name):
    whole = published_file(tmp_path, tiny_models()).read_bytes()
    content = {"cut": whole[: len(whole) // 2], "text": b"<html>not found</html>", "empty": b""}[name.split(".")[0]]
    (tmp_path / name).write_bytes(content)
    with pytest.raises(ValueError, match=f"{name}' is damaged or not a checkpoint"):
        read_checkpoint(tmp_path / name, TINY)


def test_the_same_tensors_as_safetensors(tmp_path):
    models = tiny_models(seed=3)
    save_file(
        {key: tensor.clone().contiguous() for key, tensor in to_published(models).items()},
        tmp_path / "published.safetensors",
    )
    loaded = read_checkpoint(tmp_path / "published.safetensors", TINY)
    for part, model in models.items():
        assert all(torch.equal(loaded[part].state_dict()[k], v) for k, v in model.state_dict().items())


def test_wrong_files_are_refused(tmp_path):
    models = tiny_models()
    torch.save({"weights": torch.zeros(1)}, tmp_path / "other.ckpt")
    with pytest.raises(ValueError, match="no 'state_dict'"):
        read_checkpoint(tmp_path / "other.ckpt", TINY)
    with pytest.raises(ValueError, match=r"1 are unknown \(model.lora\)"):
        read_checkpoint(published_file(tmp_path, models, **{"model.lora": torch.zeros(1)}), TINY)
    with pytest.raises(ValueError, match="cc_projection.bias has shape"):
        read_checkpoint(published_file(tmp_path, models, **{"cc_projection.bias": torch.zeros(5)}), TINY)
    with pytest.raises(ValueError, match="tensors are missing"):
        read_checkpoint(published_file(tmp_path, models))  # tiny weights for the published sizes


def test_other_cameras_are_refused():
    ring = tiny_models()["volume"].ring
    poses = ring.world_to_camera()
    check_cameras({"poses": poses + 1e-6}, ring)
    with pytest.raises(ValueError, match="cameras other than"):
        check_cameras({"poses": poses.roll(1, 0)}, ring)
