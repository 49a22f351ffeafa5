"""Adan, the optimizer of the public HiFA code, which torch does not provide."""

import torch


class Adan(torch.optim.Optimizer):
    """Adaptive Nesterov momentum (Xie et al. 2022, "Adan", algorithm 1), with the bias correction of the public code.

    Let g be the gradient and d its change since the last step; d is 0 in the first step. The optimizer keeps moving
    averages m of g, v of d, and n of (g + b2 d)^2, with the decay rates b1, b2 and b3. The update is

        theta <- (theta - lr (m + b2 v) / (sqrt(n) + eps)) / (1 + lr lambda)

    Args:
        params, lr: As in other optimizers of torch.
        betas: Decay rates b1, b2 and b3 of m, v and n. Each is one minus the paper's beta.
        eps: Added to sqrt(n).
        weight_decay: lambda.
    """

    moments = ("exp_avg", "exp_avg_diff", "exp_avg_sq", "previous")  # state tensors, each of the parameter's shape

    def __init__(
        self,
        params,
        lr: float = 1e-3,
        betas: tuple[float, float, float] = (0.98, 0.92, 0.99),
        eps: float = 1e-8,
        weight_decay: float = 0.0,
    ):
        super().__init__(params, dict(lr=lr, betas=betas, eps=eps, weight_decay=weight_decay))

    @torch.no_grad()
    def step(self) -> None:
        """Perform one optimization step. A parameter without a gradient and its state stay unchanged."""
        for group in self.param_groups:
            for parameter in group["params"]:
                if parameter.grad is not None:
                    _update(parameter, parameter.grad, self.state[parameter], **group)


def _update(
    parameter: torch.Tensor, gradient: torch.Tensor, state: dict, *, lr, betas, eps, weight_decay, **_
) -> None:
    b1, b2, b3 = betas
    if not state:
        state["step"] = torch.zeros((), dtype=torch.float32)
        state |= {name: torch.zeros_like(gradient) for name in ("exp_avg", "exp_avg_diff", "exp_avg_sq")}
        state["previous"] = gradient.clone()
    state["step"] += 1
    count = state["step"].item()
    change = gradient - state["previous"]
    state["previous"].copy_(gradient)
    state["exp_avg"].lerp_(gradient, 1 - b1)
    state["exp_avg_diff"].lerp_(change, 1 - b2)
    ahead = gradient + b2 * change
    state["exp_avg_sq"].mul_(b3).addcmul_(ahead, ahead, value=1 - b3)
    root = (state["exp_avg_sq"] / (1 - b3**count)).sqrt_().add_(eps)
    parameter.addcdiv_(state["exp_avg"], root, value=-lr / (1 - b1**count))
    parameter.addcdiv_(state["exp_avg_diff"], root, value=-lr * b2 / (1 - b2**count))
    parameter.div_(1 + lr * weight_decay)
