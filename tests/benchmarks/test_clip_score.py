"""`benchmarks.clip_score` end to end with tiny random models, its resumption, and its arithmetic by hand."""

import json

import numpy as np
import pytest
import torch
from PIL import Image
from transformers import CLIPConfig, CLIPImageProcessor, CLIPModel, CLIPProcessor

from benchmarks import clip_score
from hifa import HiFAAsset, HiFAConfig, HiFARun
from hifa.optimization import loop as runner
from hifa.toybox.models import MAX_TOKENS, build_tokenizer


PROMPTS = ("a red ball", "a blue cube")


@pytest.fixture(scope="module")
def clip_folder(tmp_path_factory):
    """A random CLIP of 32x32 pixels, as a folder."""
    folder, tokenizer = tmp_path_factory.mktemp("tiny-clip"), build_tokenizer()
    layers = dict(hidden_size=16, intermediate_size=32, num_hidden_layers=1, num_attention_heads=2)
    words = dict(vocab_size=len(tokenizer), max_position_embeddings=MAX_TOKENS, bos_token_id=1, eos_token_id=2)
    with torch.random.fork_rng():
        torch.manual_seed(0)
        clip_score.TensorCLIP(
            CLIPConfig(
                text_config=layers | words, vision_config=layers | dict(image_size=32, patch_size=8), projection_dim=8
            )
        ).save_pretrained(folder)
    size = {"height": 32, "width": 32}
    CLIPProcessor(CLIPImageProcessor(size={"shortest_edge": 32}, crop_size=size), tokenizer).save_pretrained(folder)
    return str(folder)


@pytest.fixture
def small(monkeypatch):
    """The preset `fast`, tiny."""
    settings = dict(
        num_views=0,
        render_size=16, start_render_size=16, n_coarse=8, n_fine=6, density_grid=8, levels=3, log2_hashmap_size=8,
        max_resolution=16, hidden_dim=8, lambda_normal=0.0,
    )  # fmt: skip
    fast = HiFAConfig.fast
    monkeypatch.setattr(HiFAConfig, "fast", lambda **changes: fast(**(settings | changes)))


@pytest.fixture
def words(tmp_path, tiny_prior, clip_folder, small):
    """The command's, for two prompts."""
    (tmp_path / "prompts.txt").write_text("\n".join(PROMPTS) + "\n\n")
    return [
        "--model", str(tiny_prior), "--preset", "fast", "--steps", "3", "--prompts", str(tmp_path / "prompts.txt"),
        "--output-dir", str(tmp_path / "out"), "--save-every", "1", "--views", "3", "--size", "24",
        "--clip", clip_folder, "--iqa", clip_folder, "--device", "cpu",
    ]  # fmt: skip


def test_the_prompts_are_those_of_sdi():
    prompts = clip_score.read_prompts(clip_score.PROMPTS)
    assert len(prompts) == len(set(prompts)) == 43
    assert prompts[0] == "A car made out of sushi" and prompts[-1] == "A Viking panda with an axe"
    folders = {clip_score.folder_of(clip_score.Path("out"), *pair) for pair in enumerate(prompts)}
    assert len(folders) == 43 and clip_score.Path("out/06-a-ripe-strawberry") in folders


def test_defaults_are_those_of_the_protocol():
    arguments = clip_score.build_parser().parse_args([])
    assert (arguments.preset, arguments.views, arguments.limit, arguments.steps) == ("paper", 50, None, None)
    assert arguments.clip == "openai/clip-vit-base-patch32"


def test_end_to_end_and_again(words, tmp_path, capsys, monkeypatch):
    clip_score.main(words)
    result = json.loads(capsys.readouterr().out.splitlines()[-1])
    rows = json.loads((tmp_path / "out" / "results.json").read_text())["rows"]
    assert [row["prompt"] for row in rows] == list(PROMPTS) and result["prompts"] == 2
    assert all(row["config"]["num_inference_steps"] == 3 and row["seconds"] > 0 for row in rows)
    assert 0 <= result["clip_score"] <= 100 and 0 < result["iqa_quality"] < 100
    assert result["peak_allocated_gb"] is None and result["devices"] == ["cpu"]

    def never(*_, **__):
        raise AssertionError("nothing may be made or scored again")

    monkeypatch.setattr(clip_score.HiFAPipeline, "start", never)
    monkeypatch.setattr(clip_score.Critic, "judge", never)
    clip_score.main(words)
    assert json.loads(capsys.readouterr().out.splitlines()[-1]) == result


def test_scores_are_made_anew_for_other_views(words, tmp_path):
    clip_score.main([*words, "--limit", "1"])
    clip_score.main([*words, "--limit", "1", "--views", "2"])
    assert json.loads((tmp_path / "out" / "00-a-red-ball" / "scores.json").read_text())["views"] == 2


def test_an_interrupted_run_goes_on(words, tmp_path, monkeypatch):
    """Ended after the first step of the second prompt; the result is that of a run without interruption."""
    advance = clip_score.HiFAPipeline.advance

    def interrupted(pipe, run, steps=None):
        for step in advance(pipe, run, steps):
            yield step
            if run.prompt == PROMPTS[1]:
                raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(clip_score.HiFAPipeline, "advance", interrupted)
        with pytest.raises(KeyboardInterrupt):
            clip_score.main(words)
    folder = tmp_path / "out" / "01-a-blue-cube"
    assert HiFARun.load(folder / "run").step == 1 and not (folder / "made.json").exists()
    taken = []

    def noted(pipe, run, steps=None):
        for step in advance(pipe, run, steps):
            taken.append((run.prompt, step.step))
            yield step

    with monkeypatch.context() as patch:
        patch.setattr(clip_score.HiFAPipeline, "advance", noted)
        clip_score.main(words)
    assert taken == [(PROMPTS[1], 2), (PROMPTS[1], 3)]  # not from the start, which would end in the same asset
    other = [*words[:-1], "cpu", "--output-dir", str(tmp_path / "whole")]
    clip_score.main(other)
    fields = [HiFAAsset.from_pretrained(path / "01-a-blue-cube" / "asset").radiance_field.state_dict()
              for path in (tmp_path / "out", tmp_path / "whole")]  # fmt: skip
    assert all(torch.equal(value, fields[1][name]) for name, value in fields[0].items())


@pytest.mark.parametrize("save_every, kept", [("1", 1), ("5", 0)])
def test_a_run_that_diverges_is_counted_and_does_not_stop_the_others(
    words, tmp_path, capsys, monkeypatch, save_every, kept
):
    """The field of the first prompt is no number from its second step on: what was saved before is its asset, be it
    the initial field.
    """
    step_of = runner.optimization_step

    def poisoned(run, *arguments):
        if run.prompt == PROMPTS[0] and run.step == 1:
            with torch.no_grad():
                for parameter in run.radiance_field.parameters():
                    parameter.fill_(float("nan"))
        return step_of(run, *arguments)

    monkeypatch.setattr(runner, "optimization_step", poisoned)
    words = [*words, "--save-every", save_every]
    clip_score.main(words)
    result = json.loads(capsys.readouterr().out.splitlines()[-1])
    rows = json.loads((tmp_path / "out" / "results.json").read_text())["rows"]
    folders = [tmp_path / "out" / name for name in ("00-a-red-ball", "01-a-blue-cube")]
    assert [json.loads((folder / "made.json").read_text())["diverged"] for folder in folders] == [True, False]
    assert rows[0]["diverged"] and rows[0]["seconds"] > 0
    assert result["diverged"] == sum(row["diverged"] for row in rows) / 2
    assets = [HiFAAsset.from_pretrained(folder / "asset") for folder in folders]
    assert [asset.metadata["steps"] for asset in assets] == [kept, 3]
    assert all(value.isfinite().all() for value in assets[0].radiance_field.state_dict().values())
    assert HiFARun.load(folders[0] / "run").step == kept

    for name in ("start", "advance"):
        monkeypatch.setattr(clip_score.HiFAPipeline, name, lambda *_, **__: pytest.fail("it was run again"))
    clip_score.main(words)
    assert json.loads(capsys.readouterr().out.splitlines()[-1]) == result


def test_a_model_of_pixels_loses_its_text_encoder_first(words, tiny_if, tmp_path, released):
    clip_score.main([*words, "--model", str(tiny_if), "--variant", "fp16"])
    rows = json.loads((tmp_path / "out" / "results.json").read_text())["rows"]
    assert released == [[True]] * 2 and [row["prompt"] for row in rows] == list(PROMPTS)


def test_a_folder_of_another_run_is_refused(words, tmp_path):
    clip_score.main([*words, "--limit", "1"])
    with pytest.raises(ValueError, match="00-a-red-ball holds another run .different seed.*--output-dir"):
        clip_score.main([*words, "--limit", "1", "--seed", "1"])
    (tmp_path / "out" / "00-a-red-ball" / "made.json").unlink()  # as if it were not finished
    with pytest.raises(ValueError, match="different config"):
        clip_score.main([*words, "--limit", "1", "--steps", "4"])


def test_bad_prompts_are_refused_before_the_first_run(words, tmp_path, monkeypatch):
    monkeypatch.setattr(clip_score.HiFAPipeline, "start", lambda *_, **__: pytest.fail("a run has begun"))
    (tmp_path / "prompts.txt").write_text("a red ball\na red zebra\n")
    with pytest.raises(ValueError, match="zebra"):
        clip_score.main(words)
    (tmp_path / "prompts.txt").write_text("\n")
    with pytest.raises(ValueError, match="has no prompts"):
        clip_score.main(words)


def test_the_score_is_the_cosine_of_clips_own_features(clip_folder):
    """Against transformers alone: pixels from PIL, embeddings of the whole model, cosines and shares of pairs."""
    shape, generator = (clip_score.BATCH + 2, 3, 48, 48), torch.Generator().manual_seed(0)
    pictures = torch.randint(0, 256, shape, generator=generator, dtype=torch.uint8)
    images = [Image.fromarray(np.asarray(picture.permute(1, 2, 0))) for picture in pictures]
    pairs = ["Good photo.", "Bad photo.", "Sharp photo.", "Blurry photo.", "Real photo.", "Abstract photo."]
    prompts = ["a red ball", "a blue cube", "a green duck", "a white house", "a black car"]
    model, processor = CLIPModel.from_pretrained(clip_folder), CLIPProcessor.from_pretrained(clip_folder)
    with torch.no_grad():
        output = model(**processor(text=pairs + prompts, images=images, return_tensors="pt", padding=True))
    cosines = 100 * output.image_embeds @ output.text_embeds.T
    shares = 100 * cosines[:, :6].view(len(images), 3, 2).softmax(-1)[..., 0].mean(0)
    best = cosines[:, 6:].mean(0).argmax().item()
    expected = cosines[:, 6 + best].mean().item()
    assert expected > 5, "a score below 0 would be given as 0"
    judged = clip_score.Critic(clip_folder, clip_folder).judge(pictures, prompts[best])
    assert judged["clip_score"] == pytest.approx(expected, abs=0.05)
    for name, share in zip(clip_score.QUALITIES, shares, strict=True):
        assert judged[f"iqa_{name}"] == pytest.approx(share.item(), abs=0.1)


def test_views_are_a_turn_on_white(analytic_field):
    """A dark wall at the front: seen from the front, and from the back through nothing."""
    metadata = {"config": HiFAConfig.fast().to_dict(), "prompt": "a wall"}
    ball = analytic_field(lambda points: 100.0 * (points.norm(dim=-1) < 0.5), (0.0, 0.0, 0.0))
    views = clip_score.render_views(HiFAAsset(ball, metadata), 4, 32)
    assert views.pictures.shape == (4, 3, 32, 32) and views.pictures.dtype == torch.uint8
    assert (views.pictures[:, :, 0, 0] == 255).all() and (views.pictures[:, :, 16, 16] == 0).all()
    assert 0.05 < views.opacity < 0.5


@pytest.mark.parametrize("density, diverged", [(0.0, True), (100.0, False), (float("nan"), True)])
def test_what_is_empty_has_diverged(analytic_field, clip_folder, tmp_path, density, diverged):
    ball = analytic_field(lambda points: density * (points.norm(dim=-1) < 0.5))
    asset = HiFAAsset(ball, {"config": HiFAConfig.fast().to_dict(), "prompt": "a red ball"})
    way = {"clip": clip_folder, "iqa": clip_folder, "views": 2, "size": 24}
    critic = clip_score.Critic(clip_folder, clip_folder)
    assert clip_score.score_asset(critic, asset, tmp_path, way)["diverged"] is diverged


def test_summary_by_hand():
    def row(score, diverged, seconds, peak):
        return {
            "clip_score": score, "iqa_quality": 80.0, "iqa_sharpness": 90.0, "iqa_real": score, "diverged": diverged,
            "seconds": seconds, "peak_allocated_gb": peak, "peak_reserved_gb": None, "device": "A100",
        }  # fmt: skip

    result = clip_score.summarize([row(20.0, True, 60, 10.0), row(30.0, False, 180, 12.5), row(34.0, False, 120, 9.0)])
    assert (result["clip_score"], result["clip_score_std"], result["clip_score_converged"]) == (28.0, 5.89, 32.0)
    assert (result["iqa_quality"], result["iqa_real"], result["diverged"]) == (80.0, 28.0, 0.333)
    assert (result["minutes"], result["peak_allocated_gb"], result["peak_reserved_gb"]) == (2.0, 12.5, None)
    assert clip_score.summarize([row(20.0, True, 60, None)])["clip_score_converged"] is None
