"""The published score of a prior, computed with diffusers' own parts."""

import torch

from tests.helpers.runs import generator


SIZE = 32  # pixels that the tiny priors see


def view() -> torch.Tensor:
    """Return a smooth random picture `(1, 3, H, W)`."""
    x = torch.rand(1, 3, 4, 4, generator=generator())
    return torch.nn.functional.interpolate(x, SIZE, mode="bilinear").requires_grad_()


def score_by_diffusers(pipe, t: int, scale: float):
    """Compute the view, its latent, eps_hat, eps, alpha_t and sigma_t with diffusers' own parts."""
    x = view()
    z = pipe.vae.encode(2 * x - 1).latent_dist.mode() * pipe.vae.config.scaling_factor
    noise = torch.randn(z.shape, generator=generator(5))
    z_t = pipe.scheduler.add_noise(z.detach(), noise, torch.tensor([t]))
    tokens = pipe.encode_prompt("a red ball")[[0, 2]].tokens
    with torch.no_grad():
        negative, positive = pipe.unet(torch.cat([z_t] * 2), t, encoder_hidden_states=tokens).sample.chunk(2)
    alpha, sigma = pipe.scheduler.alphas_cumprod[t] ** 0.5, (1 - pipe.scheduler.alphas_cumprod[t]) ** 0.5
    output = negative + scale * (positive - negative)
    epsilon = output if pipe.scheduler.config.prediction_type == "epsilon" else alpha * output + sigma * z_t
    return x, z, epsilon, noise, alpha, sigma
