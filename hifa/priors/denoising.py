"""Single-step and multi-step denoising: estimate the clean sample from a noisy sample (HiFA algorithm 1)."""

from collections.abc import Callable

from torch import Tensor


PREDICTION_TYPES = ("epsilon", "v_prediction", "sample")


def add_noise(z: Tensor, noise: Tensor, alpha_cumprod: float) -> Tensor:
    """Return z_t = alpha_t z + sigma_t eps (algorithm 1, step 3)."""
    return alpha_cumprod**0.5 * z + (1 - alpha_cumprod) ** 0.5 * noise


def to_epsilon(output: Tensor, z_t: Tensor, alpha_cumprod: float, prediction_type: str) -> Tensor:
    """Convert a model output to a noise estimate (Salimans and Ho 2022, "Progressive Distillation", appendix D).

    Args:
        output: `(B, C, h, w)` model output.
        z_t: `(B, C, h, w)` noisy latents that the model received.
        alpha_cumprod: alpha_t^2.
        prediction_type: One of `PREDICTION_TYPES`.

    Raises:
        ValueError: If the prediction type is unknown.
    """
    alpha, sigma = alpha_cumprod**0.5, (1 - alpha_cumprod) ** 0.5
    if prediction_type == "epsilon":
        return output
    if prediction_type == "v_prediction":
        return alpha * output + sigma * z_t
    if prediction_type == "sample":
        return (z_t - alpha * output) / sigma
    raise ValueError(f"Unknown prediction_type {prediction_type!r}. Use {', '.join(map(repr, PREDICTION_TYPES))}.")


def to_sample(epsilon: Tensor, z_t: Tensor, alpha_cumprod: float) -> Tensor:
    """Return z_hat = (z_t - sigma_t eps_hat) / alpha_t (text below equation 2)."""
    return (z_t - (1 - alpha_cumprod) ** 0.5 * epsilon) / alpha_cumprod**0.5


def denoising_timesteps(t: int, stride: float, num_train_timesteps: int) -> list[int]:
    """Return the timesteps of the denoiser calls: t, t - r T, t - 2 r T, ... while positive.

    r is `stride` and T is `num_train_timesteps`. For r = 1 the list contains t alone.
    """
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
    """Estimate z from z_t by single-step or multi-step denoising (HiFA algorithm 1, step 5).

    A single step (stride 1) returns z_hat = (z_t - sigma_t eps_hat) / alpha_t. Multi-step denoising runs DDIM (Song et
    al. 2021, equations 12 and 16) from t to the end of the schedule, in jumps of stride x T timesteps. The last jump
    adds no noise. In the public HiFA code the last jump adds noise, which remains in the estimate.

    Args:
        z_t: `(B, C, h, w)` noisy latents.
        t: Timestep of `z_t`.
        predict: Function from (latents, timestep) to the guided noise estimate.
        alphas_cumprod: `(T,)` cumulative product of alphas at each timestep.
        final_alpha_cumprod: Cumulative product of alphas at the end of denoising.
        stride: Jump size r in (0, 1], as a fraction of T.
        eta: Share of new noise in each jump, from 0 (DDIM) to 1 (ancestral sampling).
        draw_noise: Function that returns a new standard normal sample of the shape of z_t. It is called only for
            eta > 0.
        limit: Function applied to every estimate of z before the estimate is used.

    Returns:
        Estimate of z, `(B, C, h, w)`.
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
