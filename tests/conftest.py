"""Fixtures that several test files share: tiny priors of real diffusers components, and fields with a known shape."""

import os
import signal
import weakref
from collections.abc import Callable
from pathlib import Path

import pytest


# Before the client is imported: the tests' Hub speaks git LFS, not Xet's protocol to Xet's own servers.
os.environ["HF_HUB_DISABLE_XET"] = "1"
os.environ["GRADIO_ANALYTICS_ENABLED"] = "False"
# Tiny models gain nothing from a second thread, here and in the processes that tests start; and on a busy machine
# threads wait for each other.
os.environ["OMP_NUM_THREADS"] = "1"
import torch
from diffusers import AutoencoderKL, DDIMScheduler, StableDiffusionPipeline, UNet2DConditionModel
from transformers import CLIPTextConfig, CLIPTextModel, DPTConfig, DPTForDepthEstimation
from xdist.scheduler import LoadScopeScheduling

from hifa import HiFAPipeline
from hifa.field import RadianceField
from hifa.toybox.models import MAX_TOKENS, build_scheduler, build_tokenizer


class Places(LoadScopeScheduling):
    """Keep the tests of a file in one process, for the fixtures that they share, and all tests of the browser in one,
    because two browsers and two servers are too much for two cores.
    """

    def _split_scope(self, nodeid: str) -> str:
        file = nodeid.partition("::")[0]
        return "browser" if "/browser/" in file else file


def pytest_collection_modifyitems(items):
    """Put the tests of the browser first: they take half of the time, in one process."""
    items.sort(key=lambda item: "/browser/" not in item.nodeid)


def pytest_xdist_make_scheduler(config, log):
    return Places(config, log)


@pytest.fixture(scope="session")
def tiny_prior(tmp_path_factory) -> Path:
    """Folder of a random Stable Diffusion of 32x32 pixels that predicts epsilon, with the words of Toybox."""
    return _save_tiny_prior(tmp_path_factory.mktemp("tiny-prior"), "epsilon")


@pytest.fixture(scope="session")
def tiny_v_prior(tmp_path_factory) -> Path:
    """As `tiny_prior`, predicting v."""
    return _save_tiny_prior(tmp_path_factory.mktemp("tiny-v-prior"), "v_prediction")


def _save_tiny_prior(folder: Path, prediction_type: str) -> Path:
    tokenizer = build_tokenizer()
    with torch.random.fork_rng():
        torch.manual_seed(0)
        text_encoder = CLIPTextModel(
            CLIPTextConfig(
                vocab_size=len(tokenizer),
                hidden_size=16,
                intermediate_size=32,
                num_hidden_layers=1,
                num_attention_heads=2,
                max_position_embeddings=MAX_TOKENS,
                bos_token_id=1,
                eos_token_id=2,
                pad_token_id=2,
            )
        )
        unet = UNet2DConditionModel(
            sample_size=8,
            block_out_channels=(8, 16),
            layers_per_block=1,
            down_block_types=("DownBlock2D", "CrossAttnDownBlock2D"),
            up_block_types=("CrossAttnUpBlock2D", "UpBlock2D"),
            cross_attention_dim=16,
            attention_head_dim=8,
            norm_num_groups=4,
        )
        vae = AutoencoderKL(
            sample_size=32,
            latent_channels=4,
            block_out_channels=(8, 8, 8),
            layers_per_block=1,
            down_block_types=("DownEncoderBlock2D",) * 3,
            up_block_types=("UpDecoderBlock2D",) * 3,
            norm_num_groups=4,
        )
    StableDiffusionPipeline(
        vae=vae,
        text_encoder=text_encoder,
        tokenizer=tokenizer,
        unet=unet,
        scheduler=DDIMScheduler.from_config(build_scheduler().config, prediction_type=prediction_type),
        safety_checker=None,
        feature_extractor=None,
        requires_safety_checker=False,
    ).save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def v_pipe(tiny_v_prior) -> HiFAPipeline:
    """The pipeline with `tiny_v_prior`."""
    pipe = HiFAPipeline.from_pretrained(tiny_v_prior)
    pipe.set_progress_bar_config(disable=True)
    return pipe


@pytest.fixture(scope="session")
def tiny_dpt(tmp_path_factory) -> Path:
    """Folder of a random disparity model of 32x32 pixels."""
    config = DPTConfig(
        image_size=32, patch_size=8, hidden_size=16, intermediate_size=32, num_hidden_layers=4, num_attention_heads=2,
        backbone_out_indices=[0, 1, 2, 3], reassemble_factors=[2, 1, 0.5, 0.25], neck_hidden_sizes=[8, 8, 8, 8],
        neck_ignore_stages=[], fusion_hidden_size=8, use_auxiliary_head=False, initializer_range=0.3,
    )  # fmt: skip
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = DPTForDepthEstimation(config)
    for value in model.head.parameters():  # the last layer is a ReLU, and a random one may be 0 everywhere
        value.data.abs_()
    folder = tmp_path_factory.mktemp("tiny-dpt")
    model.save_pretrained(folder)
    return folder


@pytest.fixture(scope="session")
def tiny_if(tmp_path_factory) -> Path:
    """Folder of a random DeepFloyd IF of 16x16 pixels, which has files of the variant fp16 alone."""
    from tests.helpers.published import build_if

    folder = tmp_path_factory.mktemp("tiny-if-fp16")
    build_if().save_pretrained(folder, variant="fp16")
    return folder


@pytest.fixture
def released(monkeypatch) -> list[list[bool]]:
    """For each run that is started, whether the text encoders that were released before are out of memory."""
    encoders, seen = [], []
    release, start = HiFAPipeline.release_text_encoder, HiFAPipeline.start

    def noted_release(pipe):
        encoders.append(weakref.ref(pipe.text_encoder))
        release(pipe)

    def noted_start(pipe, *arguments, **named):
        seen.append([encoder() is None for encoder in encoders])
        return start(pipe, *arguments, **named)

    monkeypatch.setattr(HiFAPipeline, "release_text_encoder", noted_release)
    monkeypatch.setattr(HiFAPipeline, "start", noted_start)
    return seen


@pytest.fixture
def light_files(monkeypatch):
    """The app makes small files of its runs."""
    from hifa.space.jobs import exports as files

    for name in ("MESH", "STOPPED_MESH"):
        monkeypatch.setattr(files, name, files.MeshOptions(32, 1000, 64))
    for name in ("TURNTABLE", "STOPPED_TURNTABLE"):
        monkeypatch.setattr(files, name, files.TurntableOptions(2, 32))


class AnalyticField(RadianceField):
    """A field with a given density, to compare renders with closed forms. It keeps count of what is encoded.

    Args:
        density: `(n, 3)` points -> `(n,)` per world unit.
        color: `(n, 3)` points -> `(n, 3)`, or one RGB.
        behind: RGB of the background.
    """

    def __init__(
        self,
        density: Callable[[torch.Tensor], torch.Tensor],
        color: Callable[[torch.Tensor], torch.Tensor] | tuple[float, float, float] = (0.8, 0.2, 0.1),
        behind: tuple[float, float, float] = (0.3, 0.4, 0.5),
    ):
        super().__init__(
            levels=1, base_resolution=2, max_resolution=2, log2_hashmap_size=5, hidden_dim=4, view_bands=1
        )
        self.density_at, self.color_at, self.behind = density, color, behind
        self.encoded: list[int] = []  # points in each call of `encode`

    def encode(self, points):
        self.encoded.append(len(points))
        if callable(self.color_at):
            return self.density_at(points), self.color_at(points)
        return self.density_at(points), points.new_tensor(self.color_at).expand(len(points), 3)

    def color_of(self, features, directions):
        return features

    def background(self, directions):
        return directions.new_tensor(self.behind).expand(len(directions), 3)


@pytest.fixture(scope="session")
def analytic_field() -> type[AnalyticField]:
    return AnalyticField


@pytest.fixture
def interruptible():
    """Ctrl-C raises KeyboardInterrupt, also in tests that were started in the background, where it is ignored."""
    previous = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, previous)
