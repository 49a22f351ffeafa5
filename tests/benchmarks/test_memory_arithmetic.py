"""`benchmarks.memory_arithmetic`: the counter by hand, against the CPU, and the figures of README."""

import pytest
import torch
from torch import nn

from benchmarks import memory_arithmetic
from benchmarks.memory import tiny_pipeline
from benchmarks.memory_arithmetic import LiveBytes
from hifa import HiFAConfig
from hifa.field import RadianceField


def test_live_bytes_by_hand():
    with LiveBytes() as live:
        a = torch.zeros(1000)
        b = a + 1
        view = b[:10].view(2, 5)  # no bytes of its own
        assert live.now() == live.peak == 8000
        del a
        assert live.now() == 4000 and live.peak == 8000
        del b
        assert live.now() == 4000, "the view holds it"
        del view
        assert live.now() == 0


@pytest.mark.parametrize("device", ["cpu", "meta"])
def test_live_bytes_of_a_graph_by_hand(device):
    """Two linear maps and a ReLU of 100 rows of 64 float32: what is kept is what the backward pass needs."""
    net = nn.Sequential(nn.Linear(64, 64), nn.ReLU(), nn.Linear(64, 64)).requires_grad_(False).to(device)
    x = torch.zeros(100, 64, device=device, requires_grad=True)
    rows = 100 * 64 * 4
    with LiveBytes() as live:
        y = net(x)
        assert live.now() == 2 * rows, "the ReLU's output and the last one; frozen weights keep no input"
        y.sum().backward()
    assert live.peak <= 2 * rows + 2 * rows + 8


@pytest.fixture
def pipe():
    return tiny_pipeline(64)


def test_the_meta_device_counts_what_a_cpu_does(pipe):
    """The same tiny prior on both: tensors of the same shapes are alive at the same times."""
    config, dim = HiFAConfig.paper(denoising_stride=0.5), pipe.text_encoder.config.hidden_size
    on_cpu = memory_arithmetic.guidance_bytes(pipe.make_prior(), config, dim, "cpu")
    on_meta = memory_arithmetic.guidance_bytes(pipe.to("meta").make_prior(), config, dim)
    assert on_cpu == pytest.approx(on_meta, rel=0.02)
    assert 0 < on_cpu[0] < on_cpu[1]


def test_a_chunk_is_proportional_to_its_rays():
    field = RadianceField(levels=4, log2_hashmap_size=8, max_resolution=64, hidden_dim=16)
    small = dict(n_coarse=32, n_fine=16, render_size=64)
    one, two = (
        memory_arithmetic.chunk_bytes(field, HiFAConfig.paper(rays_per_chunk=rays, **small)) for rays in (256, 512)
    )
    assert one * 1.8 < two < one * 2.2
    assert memory_arithmetic.field_bytes(field) == 4 * sum(4 * p.numel() for p in field.parameters())


def test_stable_diffusion_in_half_precision():
    """Weights by hand, and the whole below a tenth of what was reported of HiFA, 46.4 GB, but for a little."""
    config = HiFAConfig.paper(rays_per_chunk=256, denoising_stride=1.0)
    result = memory_arithmetic.arithmetic("sd15", config)
    assert result["weights"] == {"unet": 1.719, "vae": 0.167, "text_encoder": 0.246}
    assert result["field"] == pytest.approx(4 * 4 * 16 * 2**19 * 2 / 1e9, abs=0.002)
    assert result["image"] == pytest.approx(512**2 * 4 * (8 + 7 + 7) / 1e9, abs=0.002)  # rays, seen, gradients
    parts = sum(result["weights"].values()) + result["field"] + result["image"]
    assert result["total"] == pytest.approx(parts + result["guidance"], abs=0.01)
    # What 512x512 pixels of 128 channels take in half precision, 67 MB, the encoder keeps at least a dozen times.
    assert 12 * 0.067 < result["encoder_graph"] < result["guidance"] < 3.0
    assert result["total"] < 5.5 and result["without_chunks"] > 46.4
