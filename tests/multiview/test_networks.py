"""Volume networks, depth attention and its hooks, at tiny sizes."""

import pytest
import torch
from torch import nn

from hifa.multiview.architecture import Architecture, build_unet
from hifa.multiview.conditioning import ViewConditioner, clip_embedding, image_latent, view_embedding
from hifa.multiview.denoiser import VolumeDenoiser, predict
from hifa.multiview.depth_attention import DepthAttention, DepthTransformer, attention_sites
from hifa.multiview.volume import MultiViewVolume, VolumeUNet
from tests.helpers.syncdreamer import tiny_models


def randn(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


@pytest.fixture(scope="module")
def models():
    return tiny_models()


@pytest.fixture
def inputs(models):
    """(latents, time embeddings, view embeddings) of a batch of two."""
    return (
        randn(2, 16, 4, 8, 8),
        randn(2, 16, seed=1),
        view_embedding(torch.tensor([5.0, 40.0]), models["volume"].ring),
    )


def test_sites_are_the_published_ten():
    unet = Architecture()
    sites = attention_sites(unet.unet_channels, unet.layers_per_block, unet.up_block_types)
    assert [(site.module, site.channels, site.level) for site in sites] == [
        ("mid_block", 1280, 3),
        ("up_blocks.1.attentions.0", 1280, 2),
        ("up_blocks.1.attentions.1", 1280, 2),
        ("up_blocks.1.upsamplers.0", 1280, 1),
        ("up_blocks.2.attentions.0", 640, 1),
        ("up_blocks.2.attentions.1", 640, 1),
        ("up_blocks.2.upsamplers.0", 640, 0),
        ("up_blocks.3.attentions.0", 320, 0),
        ("up_blocks.3.attentions.1", 320, 0),
        ("up_blocks.3.attentions.2", 320, 0),
    ]


@torch.no_grad()
@pytest.mark.parametrize("cross", [(True, True, False), (False, True, True), (True, True, True)])
def test_sites_see_the_resolution_of_their_volume(cross):
    """Three resolutions, with and without cross-attention: every site exists, once, at the size its level has."""
    sizes = Architecture(
        latent_size=16, unet_channels=(8, 16, 16), cross_attention=cross, layers_per_block=1, attention_heads=2,
        cross_attention_dim=4, unet_norm_num_groups=4,
    )  # fmt: skip
    unet, seen = build_unet(sizes), []
    for site in attention_sites(sizes.unet_channels, 1, sizes.up_block_types):

        def note(module, inputs, output, site=site):
            output = output[0] if isinstance(output, tuple) else output
            seen.append((site.level, *output.shape[1:3], site.channels))

        unet.get_submodule(site.module).register_forward_hook(note)
    unet(randn(1, 8, 16, 16), 5, randn(1, 1, 4))
    assert len(seen) == 1 + 2 * 2
    assert all(channels == expected and size == 16 // 2**level for level, channels, size, expected in seen)


@torch.no_grad()
def test_depth_attention_is_attention_over_depth():
    """Against keys and values made for every depth of every pixel."""
    layer = DepthTransformer(channels=6, volume_dim=8, heads=3, groups=2)
    x, context = randn(2, 12, 3, 5), randn(2, 8, 7, 3, 5, seed=1)

    def split(y):  # (B, inner, ...) -> (B, heads, head_dim, ...)
        return y.unflatten(1, (3, 4))

    query = split(layer.to_q(x.movedim(1, -1)).movedim(-1, 1))
    keys, values = (split(proj(context.movedim(1, -1)).movedim(-1, 1)) for proj in (layer.to_k, layer.to_v))
    weights = (query[:, :, :, None] * keys).sum(2).mul(4**-0.5).softmax(2)  # (B, heads, D, H, W)
    expected = (values * weights[:, :, None]).sum(3).flatten(1, 2)
    expected = layer.to_out(expected.movedim(1, -1)).movedim(-1, 1)
    torch.testing.assert_close(layer.attend(x, context), expected, rtol=1e-5, atol=1e-6)


@torch.no_grad()
def test_new_depth_attention_changes_nothing():
    layer, hidden = DepthTransformer(6, 8, 2, 2), randn(1, 6, 3, 3)
    assert torch.equal(layer(hidden, randn(1, 8, 4, 3, 3)), hidden)


def test_volume_unet_levels():
    net = VolumeUNet(3, (4, 8, 12), layers=2, time_dim=5, view_dim=2, groups=2)
    levels = net(randn(1, 3, 12, 8, 8), randn(1, 5), randn(1, 2))
    assert [tuple(level.shape[1:]) for level in levels] == [(4, 12, 8, 8), (8, 6, 4, 4), (12, 3, 2, 2)]
    assert [len(blocks) for blocks in net.down] == [1, 3, 3]


@torch.no_grad()
def test_volumes_of_a_batch_are_those_of_its_members(models, inputs):
    volume, views = models["volume"], torch.tensor([[0, 3], [7, 15]])
    spatial = volume.spatial_volume(*inputs)
    assert spatial.shape == (2, 8, 8, 8, 8)
    frustums = volume.frustums(spatial, *inputs[1:], views)
    assert [tuple(level.shape) for level in frustums] == [(4, 8, 8, 8, 8), (4, 16, 4, 4, 4)]
    for member in range(2):
        own = [x[member, None] for x in inputs]
        torch.testing.assert_close(volume.spatial_volume(*own), spatial[member, None], rtol=1e-4, atol=1e-5)
        alone = volume.frustums(spatial[member, None], *own[1:], views[member, None])
        for level, part in zip(frustums, alone, strict=True):
            torch.testing.assert_close(level[2 * member : 2 * member + 2], part, rtol=1e-4, atol=1e-5)


@torch.no_grad()
def test_volume_takes_every_view(models, inputs):
    latents, t_embed, v_embed = inputs
    before = models["volume"].spatial_volume(latents, t_embed, v_embed)
    for view in range(16):
        changed = latents.clone()
        changed[:, view] += 1
        assert (models["volume"].spatial_volume(changed, t_embed, v_embed) - before).abs().max() > 1e-4


def test_sizes_must_halve():
    with pytest.raises(ValueError, match="latent_size must be a multiple of 8 for 4 levels, got 20"):
        MultiViewVolume(latent_size=20)
    with pytest.raises(ValueError, match="4 resolutions, got volume_dims=\\(8, 16\\)"):
        DepthAttention(volume_dims=(8, 16))


@pytest.fixture
def step(models, inputs):
    """Arguments of `predict` for views 1 and 2 of the first of a batch."""
    latents, t_embed, v_embed = (x[:1] for x in inputs)
    with torch.no_grad():
        spatial = models["volume"].spatial_volume(latents, t_embed, v_embed)
        volumes = models["volume"].frustums(spatial, t_embed, v_embed, torch.tensor([[1, 2]]))
    return latents[0, 1:3], randn(2, 4, 8, 8, seed=5), 300, randn(2, 1, 12, seed=6), volumes


@torch.no_grad()
def test_guidance(models, step):
    """W = 1 is the conditional output, w = 0 the one without any condition, and others lie on their line."""
    latents, picture, t, context, volumes = step
    with VolumeDenoiser(models["unet"], models["depth_attention"]) as denoiser:
        outputs = [predict(denoiser, *step, scale) for scale in (0.0, 1.0, 3.0)]
        nothing = denoiser(
            torch.cat([latents, 0 * picture], 1), t, 0 * context, [torch.zeros_like(level) for level in volumes]
        )
    torch.testing.assert_close(outputs[0], nothing, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(outputs[2], outputs[0] + 3 * (outputs[1] - outputs[0]), rtol=1e-4, atol=1e-5)


@torch.no_grad()
def test_every_level_of_the_volumes_counts(models, step):
    with VolumeDenoiser(models["unet"], models["depth_attention"]) as denoiser:
        before = predict(denoiser, *step, 1.0)
        for level in range(2):
            volumes = [volume + (i == level) * randn(*volume.shape) for i, volume in enumerate(step[-1])]
            assert (predict(denoiser, *step[:-1], volumes, 1.0) - before).abs().max() > 1e-3


@torch.no_grad()
def test_hooks_leave_the_unet_as_they_found_it(models, step):
    unet = models["unet"]
    latents, picture, t, context, _ = step

    def plain():
        return unet(torch.cat([latents, picture], 1), t, context).sample

    before = plain()
    with VolumeDenoiser(unet, models["depth_attention"]) as denoiser:
        assert (predict(denoiser, *step, 1.0) - before).abs().max() > 1e-3
        assert denoiser._volumes == []  # forgotten after the call
    assert torch.equal(plain(), before)
    with pytest.raises(RuntimeError, match="by hand"), VolumeDenoiser(unet, models["depth_attention"]):
        raise RuntimeError("by hand")
    assert not any(module._forward_hooks for module in unet.modules())


def test_gradients_reach_all_new_parts(models, inputs):
    """What a training step needs: no detached tensor between the loss and any parameter."""
    parts = tiny_models()
    latents, t_embed, v_embed = (x[:1] for x in inputs)
    t_embed = parts["conditioner"].embed_time(torch.tensor([300]))
    context = parts["conditioner"].embed_context(randn(1, 20), v_embed[:, :2])
    spatial = parts["volume"].spatial_volume(latents, t_embed, v_embed)
    volumes = parts["volume"].frustums(spatial, t_embed, v_embed, torch.tensor([[0, 1]]))
    with VolumeDenoiser(parts["unet"], parts["depth_attention"]) as denoiser:
        predict(denoiser, latents[0, :2], latents[0, 2:4], 300, context, volumes, 1.0).square().mean().backward()
    for name in ("unet", "volume", "depth_attention", "conditioner"):
        missing = [key for key, value in parts[name].named_parameters() if value.grad is None]
        assert not missing, (name, missing[:3])


def test_view_embedding_by_hand():
    ring = tiny_models()["volume"].ring
    embedding = view_embedding(0.0, ring)[0]
    torch.testing.assert_close(embedding[0], torch.tensor([-0.5235988, 0.0, 1.0, 0.0]))
    torch.testing.assert_close(embedding[4], torch.tensor([-0.5235988, 1.0, 0.0, 0.0]), rtol=0, atol=1e-6)


def test_time_embedding_is_sinusoidal():
    conditioner = ViewConditioner(time_dim=8)
    conditioner.time_mlp = nn.Identity()
    waves = torch.exp(-torch.log(torch.tensor(10000.0)) * torch.arange(4) / 4) * 7
    torch.testing.assert_close(conditioner.embed_time(torch.tensor([7]))[0], torch.cat([waves.cos(), waves.sin()]))


@torch.no_grad()
def test_clip_pixels(models):
    """A uniform image stays so: what CLIP gets is (value - mean) / std, whatever its size."""
    seen = []
    handle = models["image_encoder"].vision_model.register_forward_pre_hook(
        lambda module, args, kwargs: seen.append(kwargs["pixel_values"]), with_kwargs=True
    )
    assert clip_embedding(models["image_encoder"], torch.full((1, 3, 32, 32), -0.5)).shape == (1, 20)
    handle.remove()
    expected = (0.25 - torch.tensor([0.48145466, 0.4578275, 0.40821073])) / torch.tensor(
        [0.26862954, 0.26130258, 0.27577711]
    )
    torch.testing.assert_close(seen[0], expected.view(1, 3, 1, 1).expand(1, 3, 16, 16))


@torch.no_grad()
def test_latent_of_the_picture_is_a_sample_without_the_scale(models):
    image, vae = randn(1, 3, 32, 32).clamp(-1, 1), models["vae"]
    latent = image_latent(vae, image, torch.Generator().manual_seed(3))
    posterior = vae.encode(image).latent_dist
    torch.testing.assert_close(latent, posterior.mean + posterior.std * randn(1, 4, 8, 8, seed=3))
