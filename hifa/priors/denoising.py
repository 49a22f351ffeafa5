"""Denoising in one step or several: from a noisy sample to an estimate of the clean one (HiFA algorithm 1)."""

from collections.abc import Callable

from torch import Tensor


PREDICTION_TYPES = ("epsilon", "v_prediction", "sample")


def add_noise(z: Tensor, noise: Tensor, alpha_cumprod: float) -> Tensor:
    """z_t = alpha_t z + sigma_t eps (algorithm 1, step 3)."""
    return alpha_cumprod**0.5 * z + (1 - alpha_cumprod) ** 0.5 * noise


def to_epsilon(output: Tensor, z_t: Tensor, alpha_cumprod: float, prediction_type: str) -> Tensor:
    """Noise estimate from a model output (Salimans and Ho 2022, "Progressive Distillation", appendix D).

    Raises:
        ValueError: For a prediction type other than epsilon, v_prediction and sample.
    """
    alpha, sigma = alpha_cumprod**0.5, (1 - alpha_cumprod) ** 0.5
    if prediction_type == "epsilon":
        return output
    if prediction_type == "v_prediction":
        return alpha * output + sigma * z_t
    if prediction_type == "sample":
        return (z_t - alpha * output) / sigma
    raise ValueError(f"prediction_type {prediction_type!r} is not one of {', '.join(map(repr, PREDICTION_TYPES))}.")


def to_sample(epsilon: Tensor, z_t: Tensor, alpha_cumprod: float) -> Tensor:
    """z_hat = (z_t - sigma_t eps_hat) / alpha_t (below equation 2)."""
    return (z_t - (1 - alpha_cumprod) ** 0.5 * epsilon) / alpha_cumprod**0.5


def denoising_timesteps(t: int, stride: float, num_train_timesteps: int) -> list[int]:
    """Timesteps at which the denoiser is called from t on: t, t - r T, ... while positive; only t itself for r = 1."""
    return list(range(t, 0, -max(1, round(stride * num_train_timesteps)))) or [t]


def denoise(
    z_t: Tensor,
    t: int,
    predict: Callable[[Tensor, int], Tensor],
    alphas_cumprod: Tensor,
    final_alpha_cumprod: float,
    stride: float,
    eta: float,
    draw_noise: Callable[[], Tensor],
    limit: Callable[[Tensor], Tensor] = lambda z_hat: z_hat,
) -> Tensor:
    """Estimate z from z_t, in one step or several (HiFA algorithm 1, step 5).

    One step (stride 1): z_hat = (z_t - sigma_t eps_hat) / alpha_t. Several: DDIM (Song et al. 2021, equations 12 and
    16) from t in jumps of stride x T down to the end of the schedule. The last jump adds no noise, unlike the public
    code, whose estimate still carries it.

    Args:
        z_t: `(B, C, h, w)`.
        predict: Guided noise estimate at (latents, timestep).
        alphas_cumprod: `(T,)`.
        final_alpha_cumprod: Signal level at the end of denoising.
        draw_noise: A fresh standard normal sample of the shape of z_t; called for eta > 0 only.
        limit: Applied to every estimate of z, before it is used.
    """
    timesteps = denoising_timesteps(t, stride, len(alphas_cumprod))
    jump = max(1, round(stride * len(alphas_cumprod)))
    for step in timesteps:
        now = float(alphas_cumprod[step])
        epsilon = predict(z_t, step)
        z_hat = limit(to_sample(epsilon, z_t, now))
        if stride >= 1:
            return z_hat
        last = step - jump <= 0
        after = final_alpha_cumprod if last else float(alphas_cumprod[step - jump])
        sigma = 0.0 if last else eta * ((1 - after) / (1 - now) * (1 - now / after)) ** 0.5
        z_t = after**0.5 * z_hat + (1 - after - sigma**2) ** 0.5 * epsilon
        if sigma > 0:
            z_t = z_t + sigma * draw_noise()
    return z_t
