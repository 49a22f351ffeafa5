"""The ablations' arithmetic by hand, and a short run of the whole on an untrained prior and judge."""

import argparse
import json
from dataclasses import replace

import numpy as np
import pytest
import torch
from diffusers import DDIMScheduler

from benchmarks.ablations import __main__ as ablations
from benchmarks.ablations import claims, figures, flicker, kept, measures, report, statistics, strength, variants
from benchmarks.judge import Judge, vocabulary
from hifa.storage.checkpoint import write_atomically
from hifa.toybox.models import build_scheduler


@pytest.fixture(scope="module")
def scheduler() -> DDIMScheduler:
    return build_scheduler()


# Statistics


def test_a_bootstrap_interval_by_hand():
    # Means of two draws from {0, 1}: 0, 1/2 and 1 with 1/4, 1/2 and 1/4, so that 95 % reach from 0 to 1.
    estimate = statistics.bootstrap(np.array([[0.0, 0.0], [1.0, 1.0]]))
    assert estimate == (0.5, 0.0, 1.0) and not estimate.is_sure
    assert statistics.bootstrap(np.full((3, 2), 0.25)) == (0.25, 0.25, 0.25)


def test_the_interval_is_that_of_the_mean_of_prompts_not_of_runs():
    rng = np.random.default_rng(0)
    prompts = rng.standard_normal((100, 1))
    one, same_twice = statistics.bootstrap(prompts), statistics.bootstrap(prompts.repeat(2, axis=1))
    assert one == pytest.approx(same_twice), "a second seed that says the same makes nothing surer"
    assert (one.high - one.low) / 2 == pytest.approx(1.96 * prompts.std() / 10, rel=0.05)


def test_what_is_not_a_number_is_left_out():
    estimate = statistics.bootstrap(np.array([[1.0, np.nan], [np.nan, np.nan], [3.0, 2.0]]))
    assert estimate.mean == 2.0 and 1.0 <= estimate.low <= estimate.high <= 3.0
    assert np.isnan(statistics.bootstrap(np.full((2, 2), np.nan)).mean)


def test_differences_are_of_pairs():
    reference = np.random.default_rng(0).standard_normal((6, 2))
    assert statistics.difference(reference + 0.5, reference) == pytest.approx((0.5, 0.5, 0.5))


# Variants


def test_variants_are_settings_and_differ_from_hifa(scheduler):
    compared = variants.variants(scheduler)
    base = variants.hifa_config()
    assert compared[0].name == variants.HIFA and not compared[0].changes
    assert len({variant.name for variant in compared}) == len(compared)
    for variant in compared[1:]:
        changed = replace(base, **variant.changes)
        assert changed != base and all(
            getattr(changed, name) != getattr(base, name)
            for name in variant.changes
            if name not in ("num_inference_steps", "sds_weight")
        )


def test_claims_name_variants_and_measures(scheduler):
    names = {variant.name for variant in variants.variants(scheduler)}
    for claim in claims.CLAIMS:
        assert set(claim.variants) <= names and set(claim.measures) <= set(claims.MEASURES)
        for expected in claim.expectations:
            assert {expected.better, expected.worse} <= set(claim.variants) and expected.measure in claim.measures
    assert names == {name for claim in claims.CLAIMS for name in claim.variants}, "a variant nobody asks for"


def test_evaluations_by_hand():
    # Its only step is at t = 980: 980, 680, 380, 80.
    config = replace(variants.hifa_config(steps=1), denoising_stride=0.3)
    assert variants.evaluations(config) == 3 * 4
    assert variants.evaluations(replace(config, view_guidance=1.0, denoising_stride=1.0)) == 2
    assert variants.evaluations(replace(config, distillation="sds")) == 3
    # Guided by three, the variational score, its learning forwards and twice as much backwards.
    assert variants.evaluations(replace(config, distillation="vsd")) == 3 + 1 + 3


def test_rivals_evaluate_the_unet_as_often(scheduler):
    base = variants.hifa_config()
    total = variants.evaluations(base) * base.num_inference_steps
    for variant in variants.variants(scheduler):
        if variant.name in ("several-equal", "paper-r", "sds", "sjc", "vsd-equal"):
            config = replace(base, **variant.changes)
            assert variants.evaluations(config) * config.num_inference_steps == pytest.approx(total, rel=0.02)


def test_figures_19_and_20_add_to_vsd_what_they_name(scheduler):
    base = variants.hifa_config()
    named = {variant.name: replace(base, **variant.changes) for variant in variants.variants(scheduler)}
    vsd, zvar, hifa = named["vsd"], named["vsd-zvar"], named["vsd-hifa"]
    assert replace(vsd, lambda_zvar=base.lambda_zvar) == zvar
    added = replace(zvar, lambda_rgb=base.lambda_rgb, annealing=base.annealing)
    assert replace(added, sds_weight=hifa.sds_weight) == hifa  # which follows the timesteps


def test_the_weight_of_a_rival_is_hifas_on_average(scheduler):
    base = variants.hifa_config(steps=400)
    other = replace(base, distillation="sds", annealing="random")
    alphas = scheduler.alphas_cumprod[torch.linspace(200, 980, 1000).long()]
    mean = float((alphas * (1 - alphas)).sqrt().mean())
    assert variants.equal_weight(base, other, scheduler) * mean == pytest.approx(base.sds_weight, rel=0.01)


def test_an_unknown_variant_is_refused(scheduler):
    with pytest.raises(ValueError, match="--variants takes hifa, latent, .*; got zvar"):
        ablations.chosen(variants.variants(scheduler), ["hifa", "zvar"])


# Measures


def test_half_transparent_rays_by_hand():
    opacity = torch.tensor([0.0, 0.05, 0.5, 0.95, 0.2, 1.0])
    assert measures.semi_opaque_share(opacity) == 0.5
    assert np.isnan(measures.semi_opaque_share(torch.zeros(4)))


def test_sharpness_ignores_the_outline():
    color, mask = torch.zeros(9, 9, 3), torch.zeros(9, 9, dtype=torch.bool)
    mask[2:7, 2:7] = True
    color[mask] = 0.8  # a flat square on black
    assert measures.sharpness(color, mask) == 0
    color[4, 4] = 1.0  # one brighter pixel: 4 x 0.2 there and 0.2 at its four neighbors, of nine inner pixels
    assert measures.sharpness(color, mask) == pytest.approx((0.8 + 4 * 0.2) / 9, rel=1e-5)
    assert np.isnan(measures.sharpness(color, torch.zeros(9, 9, dtype=torch.bool)))


def test_figures_are_kept_until_something_they_depend_on_changes(tmp_path):
    made = []

    def make() -> dict:
        made.append(1)
        return {"value": len(made)}

    path, (one, other) = tmp_path / "x.json", (kept.digest(b"a", part) for part in (b"b", b"c"))
    assert [kept.kept(path, key, make)["value"] for key in (one, one, other, other)] == [1, 1, 2, 2]
    assert kept.digest(b"ab", b"c") != kept.digest(b"a", b"bc")


def test_strengths_of_both_spaces_by_hand():
    """Four latents, each a third of the sum of three pixels at 0, with residuals of 1; pixels with residuals of 2."""
    x = torch.zeros(1, 3, 1, 1, requires_grad=True)
    z = (x.sum() / 3).expand(1, 4, 1, 1)
    with strength.watched() as norms:
        total = strength.distillation.sds_plus_loss(
            z, torch.full_like(z, -1.0), x, torch.full_like(x, -2.0), weight=1.0, lambda_latent=1.0, lambda_rgb=0.5
        )
    assert total.item() == pytest.approx((4 * 1 + 0.5 * 3 * 4) / 2)
    # At each pixel 4 x 1 / 3 of the latents, and 0.5 x 2 of itself.
    assert norms == [pytest.approx((4 / 3 * 3**0.5, 3**0.5))]


def test_strengths_are_compared_by_quarter():
    run = [(8.0, 1.0), (6.0, 1.0), (4.0, 2.0), (2.0, 2.0)]
    assert strength.ratios(run * 2) == {"quarters": [8.0, 6.0, 2.0, 1.0], "all": round(20 / 6, 1)}


def test_diversity_by_hand():
    same = np.ones((2, 8, 4))
    assert measures.diversity(same * np.array([1.0, 3.0])[:, None, None]) == 0, "only directions count"
    apart = np.zeros((2, 8, 2))
    apart[0, :, 0] = apart[1, :, 1] = 2.0
    assert measures.diversity(apart) == pytest.approx(2**0.5)


def test_flicker_is_not_motion():
    steady = torch.linspace(0, 1, 5)[:, None, None, None].expand(5, 2, 2, 3)
    mask = torch.ones(2, 2, dtype=torch.bool)
    assert flicker.temporal_flicker(steady, mask) == pytest.approx(0, abs=1e-6)
    blinking = torch.tensor([0.0, 0.1, 0.0, 0.1, 0.0])[:, None, None, None].expand(5, 2, 2, 3)
    assert flicker.temporal_flicker(blinking, mask) == pytest.approx(0.2)


# The page


def table_of(**right: list[list[float]]) -> report.Table:
    return {name: {"right": np.array(values)} for name, values in right.items()}


def test_verdicts_agree_contradict_or_say_nothing():
    table = table_of(a=[[1.0], [0.9], [1.0]], b=[[0.5], [0.4], [0.4]], c=[[0.9], [1.0], [1.0]])
    labels = {name: name.upper() for name in table}
    words = [
        report.verdict(claims.Expectation(better, worse, "right", 1), table, labels)
        for better, worse in (("a", "b"), ("b", "a"), ("a", "c"))
    ]
    assert (
        "**agrees** (+0.533" in words[0] and "**contradicts** (-0.533" in words[1] and "**inconclusive**" in words[2]
    )
    assert words[0].startswith("- correct views: *A* > *B*: ")


def test_remarks_are_read_by_their_headings(tmp_path):
    path = tmp_path / "remarks.md"
    path.write_text("# Remarks\n\n## zvar\n\nOne.\n\nTwo.\n\n## rivals\n\nThree.\n")
    assert report.read_remarks(path) == {"zvar": "One.\n\nTwo.", "rivals": "Three."}
    assert report.read_remarks(tmp_path / "none.md") == {}


def test_the_whole_benchmark_on_a_tiny_prior(tiny_prior, tmp_path, monkeypatch, capfd):
    with torch.random.fork_rng():
        torch.manual_seed(0)
        write_atomically(tmp_path / "judge.safetensors", Judge().state_dict(), {"vocabulary": vocabulary()})
    # The haze of an untrained field is slow to look at.
    for module, name, value in ((flicker, "FRAMES", 3), (flicker, "SIZE", 12), (figures, "SIDE", 12)):
        monkeypatch.setattr(module, name, value)
    arguments = argparse.Namespace(
        prior=tiny_prior, judge=tmp_path, output_dir=tmp_path / "runs", processes=1, prompts=1, seeds=2, steps=2,
        variants=["hifa", "no-kernel"],
    )  # fmt: skip
    result = ablations.run(arguments)
    compared = ablations.chosen(variants.variants(build_scheduler(), 2), arguments.variants)
    assert list(result) == ["seconds", *(variant.name for variant in compared)]
    assert list(result.pop("seconds")) == ["hifa"]
    assert all(0 <= row["right"] <= 1 and "late" in row for row in result.values())
    text = (tmp_path / "runs" / "RESULTS.md").read_text()  # of a trial, whose page is not the real one
    for claim in claims.CLAIMS:
        assert (claim.title in text) == (claim.name == "kernel")
    for claim in claims.claims_about(arguments.variants):
        assert (tmp_path / "runs" / "results" / f"{claim.name}.png").stat().st_size > 1000
        assert (tmp_path / "runs" / "results" / f"{claim.name}_assets.jpg").stat().st_size > 1000
    assert all(variant.label in text for variant in compared) and "64 samples" in text
    # Nothing is made twice.
    stamps = {path: path.stat().st_mtime_ns for path in (tmp_path / "runs").glob("*/done.json")}
    assert len(stamps) == 2 * len(compared)
    again = ablations.run(arguments)
    again.pop("seconds")
    assert json.dumps(again) == json.dumps(result)
    assert all(path.stat().st_mtime_ns == stamp for path, stamp in stamps.items())
