"""Variational score of ProlificDreamer (Wang et al. 2023, section 3.2).

The score is the prior with a low-rank adaptation (LoRA) that learns the distribution of the renders of a run.
"""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import replace
from typing import TYPE_CHECKING, cast

import torch
from diffusers import UNet2DConditionModel
from torch import Tensor, nn
from torch.nn import functional as F

from ..cameras import Camera, camera_to_world
from ..storage.layout import Layout, Spec
from .prior import DiffusionPrior
from .prompt_guidance import Guidance


if TYPE_CHECKING:
    from peft.tuners.lora import Linear as LoraLinear

PROJECTIONS = ("to_q", "to_k", "to_v", "to_out.0", "add_k_proj", "add_v_proj")  # the last two only in DeepFloyd IF
ADAPTER = "variational"
POSE_NUMBERS = 12


class VariationalState:
    """Trainable parameters of the variational score, and their optimizer.

    The state belongs to the run, so that the weights of the prior stay unchanged.

    Args:
        parameters: float32 tensors by name. Each projection of the UNet's attention has `<name>.lora_A` `(rank, in)`
            and `<name>.lora_B` `(out, rank)`. The camera embedding has `camera.0.weight`, `camera.0.bias`,
            `camera.1.weight` and `camera.1.bias`: two layers from a camera pose to the width of the UNet's time
            embedding.
        learning_rate: Learning rate of AdamW.
    """

    def __init__(self, parameters: dict[str, Tensor], learning_rate: float):
        # Sort by name: the optimizer state is indexed by position, and a file may have a different order.
        self.parameters = {name: nn.Parameter(parameters[name]) for name in sorted(parameters)}
        self.optimizer = torch.optim.AdamW(self.parameters.values(), lr=learning_rate)

    @classmethod
    def begin(
        cls, unet: UNet2DConditionModel, rank: int, learning_rate: float, seed: int, device: torch.device
    ) -> "VariationalState":
        """Create an initial state that leaves the predictions of the prior unchanged.

        `lora_B` and the last layer of the camera embedding are 0.

        Args:
            unet: UNet of the prior.
            rank: Rank of the LoRA layers.
            learning_rate: Learning rate of AdamW.
            seed: Seed of the remaining values, which depend only on the seed and on the layers of the UNet.
            device: Device of the parameters.
        """
        generator = torch.Generator().manual_seed(seed)
        parameters = {}
        for name, shape in parameter_shapes(unet, rank).items():
            value = parameters[name] = torch.zeros(shape)
            if name.endswith("lora_A"):
                value.normal_(std=1 / rank, generator=generator)
            elif name == "camera.0.weight":
                nn.init.kaiming_uniform_(value, a=5**0.5, generator=generator)
        return cls({name: value.to(device) for name, value in parameters.items()}, learning_rate)

    def tensors(self) -> dict[str, Tensor]:
        """Return the parameters by name, detached."""
        return {name: value.detach() for name, value in self.parameters.items()}


class VariationalScore:
    """Denoiser eps_phi(z_t; y, t, c) of the prior with LoRA layers, conditioned on the camera.

    LoRA layers are attached to the UNet only during a call. After the call, even if it raised an exception, the UNet
    has its original modules and keys.

    Args:
        prior: Prior whose UNet is adapted.
        state: State of the run, updated in place.

    Raises:
        ValueError: If the UNet cannot be adapted, or the state does not fit the UNet.
    """

    def __init__(self, prior: DiffusionPrior, state: VariationalState):
        self.prior, self.state = prior, state
        self.layers = lora_layers(prior.unet, state.parameters)

    def predict_noise(self, z_t: Tensor, t: int, prompt: Guidance, camera: Camera) -> Tensor:
        """Return eps_phi of noisy latents `(1, C, h, w)` at timestep t, for the prompt without guidance."""
        with self._in_place(camera):
            return self.prior.predict_noise(z_t, t, prompt)

    def learn(
        self, z: Tensor, prompt: Guidance, camera: Camera, prediction: str, generator: torch.Generator | None
    ) -> Tensor:
        """Take one optimizer step on the denoising loss of a render: `add_gradients`, then `step`."""
        loss = self.add_gradients(z, prompt, camera, prediction, generator)
        self.step()
        return loss

    def step(self) -> None:
        """Take an optimizer step with the gradients of `add_gradients`."""
        self.state.optimizer.step()

    def norm(self) -> Tensor:
        """Return the norm `()` of the gradients of `add_gradients`."""
        return torch.nn.utils.get_total_norm([p.grad for p in self.state.parameters.values() if p.grad is not None])

    def add_gradients(
        self, z: Tensor, prompt: Guidance, camera: Camera, prediction: str, generator: torch.Generator | None
    ) -> Tensor:
        """Set the gradients of the denoising loss of a render, at a timestep drawn from the whole schedule.

        Args:
            z: `(1, C, h, w)` latent of the render.
            prompt: Prompt without guidance.
            camera: Camera of the render.
            prediction: `"epsilon"` or `"v_prediction"`, see `denoising_loss`.
            generator: CPU generator.

        Returns:
            The loss, detached.
        """
        t = int(torch.randint(len(self.prior.alphas_cumprod), (), generator=generator))
        z_t, noise = self.prior.noisy(z, t, generator)
        prompt = replace(prompt, concat_cond=self.prior.concat_cond(z, generator))
        self.state.optimizer.zero_grad(set_to_none=True)
        with self._in_place(camera):
            predicted = self.prior.predict_noise(z_t, t, prompt)
            loss = denoising_loss(predicted, noise, float(self.prior.alphas_cumprod[t]), prediction)
            # Use the sum, not the mean: small gradients underflow in half precision, and Adam ignores a factor.
            (loss * noise.numel()).backward()
        return loss.detach()

    @contextmanager
    def _in_place(self, camera: Camera) -> Iterator[None]:
        """Attach the layers to the UNet, and add the camera embedding to the time embedding like class labels."""
        unet = self.prior.unet
        added = camera_embedding(camera, self.state.parameters)
        hook = unet.time_embedding.register_forward_hook(lambda _, inputs, output: output + added.to(output.dtype))  # pyright: ignore[reportOperatorIssue, reportAttributeAccessIssue]
        try:
            for name, layer in self.layers.items():
                unet.set_submodule(name, layer)
            yield
        finally:
            for name, layer in self.layers.items():
                unet.set_submodule(name, layer.get_base_layer())
            hook.remove()


def denoising_loss(predicted: Tensor, noise: Tensor, alpha_cumprod: float, prediction: str) -> Tensor:
    """Return the mean squared error of the noise eps_phi, or of the corresponding velocity.

    The velocity is v = alpha_t eps - sigma_t z (Salimans and Ho 2022, "Progressive Distillation", appendix D). For the
    same z_t, the error of v is 1 / alpha_t^2 times the error of the noise. With zero terminal SNR, alpha_t is 0 at the
    last timestep. There, z_t is the noise, so eps_phi is exact for any output of the model and the loss is 0.

    Args:
        predicted: eps_phi, `(B, C, h, w)`.
        noise: eps, `(B, C, h, w)`.
        alpha_cumprod: alpha_t^2.
        prediction: `"epsilon"` or `"v_prediction"`.
    """
    loss = F.mse_loss(predicted, noise)
    return loss / max(alpha_cumprod, 1e-6) if prediction == "v_prediction" else loss


def camera_embedding(camera: Camera, parameters: Mapping[str, Tensor]) -> Tensor:
    """Return the embedding `(width,)` of a camera pose: two linear layers with a SiLU in between."""
    first = parameters["camera.0.weight"]
    pose = camera_to_world(camera).flatten().to(first)
    hidden = F.silu(F.linear(pose, first, parameters["camera.0.bias"]))
    return F.linear(hidden, parameters["camera.1.weight"], parameters["camera.1.bias"])


def parameter_shapes(unet: UNet2DConditionModel, rank: int) -> dict[str, tuple[int, ...]]:
    """Return the shapes of the parameters of a `VariationalState` by name."""
    shapes: dict[str, tuple[int, ...]] = {}
    for name, module in unet.named_modules():
        if isinstance(module, nn.Linear) and name.endswith(tuple(f".{projection}" for projection in PROJECTIONS)):
            shapes[f"{name}.lora_A"] = (rank, module.in_features)
            shapes[f"{name}.lora_B"] = (module.out_features, rank)
    width = unet.time_embedding.linear_2.out_features
    shapes |= {"camera.0.weight": (width, POSE_NUMBERS), "camera.0.bias": (width,)}
    return shapes | {"camera.1.weight": (width, width), "camera.1.bias": (width,)}


def saved_layout(found: Layout, rank: int) -> Layout:
    """Return the part of the expected layout of a saved `VariationalState` that is known without the UNet.

    `lora_layers` compares the rest with the UNet.

    Args:
        found: Layout of the file, from which the width of the camera embedding is taken.
        rank: Rank of the LoRA layers.
    """
    width = found["camera.0.bias"].shape[0] if len(found.get("camera.0.bias", Spec(())).shape) == 1 else None
    expected = {
        "camera.0.weight": Spec((width, POSE_NUMBERS)), "camera.0.bias": Spec((width,)),
        "camera.1.weight": Spec((width, width)), "camera.1.bias": Spec((width,)),
    }  # fmt: skip
    for name in found:
        for end, twin, shape in ((".lora_A", ".lora_B", (rank, None)), (".lora_B", ".lora_A", (None, rank))):
            if name.endswith(end):
                expected[name] = Spec(shape)
                expected.setdefault(name.removesuffix(end) + twin, Spec(shape[::-1]))
    return expected


def check_adaptable(unet: UNet2DConditionModel) -> None:
    """Check that LoRA layers can be attached to a UNet.

    Raises:
        ValueError: If peft is not installed, the UNet already has adapters, or the UNet has no layers to adapt.
    """
    try:
        import peft  # noqa: F401
    except ImportError as error:
        raise ValueError("distillation='vsd' needs peft: pip install 'hifa[vsd]'.") from error
    if getattr(unet, "peft_config", None):
        raise ValueError(
            f"distillation='vsd' needs a UNet without adapters, but the UNet has {', '.join(unet.peft_config)}. Merge "
            "the adapters first: call fuse_lora(), then unload_lora_weights()."
        )
    if not any(name.endswith(".lora_A") for name in parameter_shapes(unet, rank=1)):
        raise ValueError(
            "distillation='vsd' adapts linear projections of attention, but the UNet has none. Use another UNet."
        )


def lora_layers(unet: UNet2DConditionModel, parameters: dict[str, nn.Parameter]) -> dict[str, "LoraLinear"]:
    """Build peft LoRA layers around layers of the UNet, without attaching them.

    Returns:
        LoRA layers with the given parameters, by the name of the wrapped layer.

    Raises:
        ValueError: See `VariationalScore`.
    """
    check_adaptable(unet)
    from peft import LoraConfig

    names = [name.removesuffix(".lora_A") for name in parameters if name.endswith(".lora_A")]
    rank = len(parameters[f"{names[0]}.lora_A"])
    if parameter_shapes(unet, rank) != {name: tuple(value.shape) for name, value in parameters.items()}:
        raise ValueError(
            "The LoRA weights of the run do not fit the UNet. Resume the run with the model that started the run."
        )
    try:
        # On the meta device peft does not draw initial values from the global generator.
        with torch.device("meta"):
            unet.add_adapter(LoraConfig(r=rank, lora_alpha=rank, target_modules=names), ADAPTER)
        layers = {name: cast("LoraLinear", unet.get_submodule(name)) for name in names}
    finally:
        unet.unload_lora()
    for name, layer in layers.items():
        layer.lora_A[ADAPTER].weight = parameters[f"{name}.lora_A"]
        layer.lora_B[ADAPTER].weight = parameters[f"{name}.lora_B"]
    return layers
