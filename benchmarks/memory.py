"""Peak memory of optimization steps as in the paper: 512x512 pixels, 128 + 64 samples per ray, no density grid.

    python -m benchmarks.memory
    python -m benchmarks.memory --model stable-diffusion-v1-5/stable-diffusion-v1-5 --half      # on a CUDA machine

A new process loads the given model, or by default a tiny prior with real classes and random weights. The process reads
its own memory, starts a run with the `paper` preset and takes two steps. The second step includes the state of Adam.
On a GPU, the benchmark measures the memory allocated by torch. On a CPU, the benchmark measures resident memory, which
requires /proc of Linux. `benchmarks.memory_arithmetic` computes the expected values.

The last line printed is one JSON object. All values in MB are in units of 10^6 bytes:

    baseline_mb     memory after the models are loaded
    peak_mb         on a GPU, peak memory of the steps; on a CPU, peak memory since the start of the process
    above_mb        peak_mb - baseline_mb: memory of field, optimizer, renders and graphs
    reserved_mb     on a GPU, peak memory reserved by torch, including gaps; on a CPU, null
    seconds         time of the steps
"""

import argparse
import json
import subprocess
import sys
import time
from pathlib import Path


# Heavy imports are inside functions, so that only the measured process runs them.
STATUS = Path("/proc/self/status")


def status_megabytes(text: str, field: str) -> float:
    """Return a field of /proc/PID/status in MB, such as VmRSS (resident memory) or VmHWM (its peak).

    The unit kB in this file means 1024 bytes.

    Raises:
        ValueError: If the field does not exist.
    """
    for line in text.splitlines():
        name, _, value = line.partition(":")
        if name == field:
            return int(value.split()[0]) * 1024 / 1e6
    raise ValueError(f"/proc/PID/status has no {field}. Run this benchmark on Linux.")


def now_megabytes(device: str) -> float:
    """Return the memory in use on the device in MB: allocated on a GPU, resident on a CPU."""
    import torch

    if device.startswith("cuda"):
        return torch.cuda.memory_allocated(device) / 1e6
    return status_megabytes(STATUS.read_text(), "VmRSS")


def peak_megabytes(device: str) -> tuple[float, float | None]:
    """Return the peak memory so far in MB, and the peak that torch reserved on a GPU."""
    import torch

    if device.startswith("cuda"):
        return torch.cuda.max_memory_allocated(device) / 1e6, torch.cuda.max_memory_reserved(device) / 1e6
    return status_megabytes(STATUS.read_text(), "VmHWM"), None


def tiny_pipeline(image_size: int):
    """Return a HiFAPipeline with random weights and few channels. The prior takes images of `image_size` pixels."""
    import torch
    from diffusers import AutoencoderKL, UNet2DConditionModel

    from hifa import HiFAPipeline
    from hifa.toybox.models import build_scheduler, build_text_encoder, build_tokenizer

    channels = (16, 32, 32)
    with torch.random.fork_rng():
        torch.manual_seed(0)
        text_encoder = build_text_encoder()
        vae = AutoencoderKL(
            block_out_channels=channels,  # pyright: ignore[reportArgumentType]
            down_block_types=("DownEncoderBlock2D",) * 3,  # pyright: ignore[reportArgumentType]
            up_block_types=("UpDecoderBlock2D",) * 3,  # pyright: ignore[reportArgumentType]
            norm_num_groups=8,
            mid_block_add_attention=False,
        )
        unet = UNet2DConditionModel(
            sample_size=image_size // 4,
            block_out_channels=channels,
            layers_per_block=1,
            down_block_types=("DownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D"),
            up_block_types=("CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D"),
            cross_attention_dim=text_encoder.config.hidden_size,
            attention_head_dim=16,
            norm_num_groups=8,
        )
    return HiFAPipeline(vae, text_encoder, build_tokenizer(), unet, build_scheduler())


def measure(
    size: int, prior_size: int, steps: int, model: str | None = None, half: bool = False, device: str = "cpu"
) -> dict:
    """Measure the memory of the steps in this process, which must be a new process.

    Args:
        size: Pixels per side of the render.
        prior_size: Pixels per side of the tiny prior's images.
        steps: Number of steps.
        model: Hub ID or folder of a model that replaces the tiny prior.
        half: Load the model in float16.
        device: Device of the run.
    """
    import torch

    from hifa import HiFAConfig, HiFAPipeline

    if model is None:
        pipe = tiny_pipeline(prior_size)
    else:
        pipe = HiFAPipeline.from_pretrained(model, dtype=torch.float16 if half else torch.float32)
    pipe.to(device)
    baseline = now_megabytes(device)
    config = HiFAConfig.paper(render_size=size, start_render_size=size)
    start = time.perf_counter()
    run = pipe.start("a red mushroom", config=config, seed=0)
    for _ in pipe.advance(run, steps):
        pass
    seconds = time.perf_counter() - start
    peak, reserved = peak_megabytes(device)
    return {
        "model": model or "tiny",
        "device": device,
        "render_size": size,
        "samples_a_ray": config.n_coarse + config.n_fine,
        "rays_per_chunk": config.rays_per_chunk,
        "prior_size": pipe.image_size,
        "steps": steps,
        "baseline_mb": round(baseline),
        "peak_mb": round(peak),
        "above_mb": round(peak - baseline),
        "reserved_mb": None if reserved is None else round(reserved),
        "seconds": round(seconds, 1),
    }


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--size", type=int, default=512, help="pixels per side of the render")
    parser.add_argument("--prior-size", type=int, default=64, help="pixels per side of the tiny prior's images")
    parser.add_argument("--model", metavar="ID_OR_DIR", help="a real prior; the prompt is 'a red mushroom'")
    parser.add_argument("--half", action="store_true", help="load the model in float16")
    parser.add_argument("--device", help="default: cuda if available and --model is given, otherwise cpu")
    parser.add_argument("--steps", type=int, default=2)
    parser.add_argument("--here", action="store_true", help="measure in this process instead of a new one")
    arguments = parser.parse_args()
    if not arguments.here:
        return subprocess.run([sys.executable, "-m", "benchmarks.memory", "--here", *sys.argv[1:]]).returncode
    import torch

    device = arguments.device or ("cuda" if arguments.model and torch.cuda.is_available() else "cpu")
    options = (arguments.model, arguments.half, device)
    print(json.dumps(measure(arguments.size, arguments.prior_size, arguments.steps, *options)))
    return 0


if __name__ == "__main__":
    sys.exit(main())
