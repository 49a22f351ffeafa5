"""The variational score of ProlificDreamer (Wang et al. 2023, section 3.2): the prior with a low-rank adaptation
(LoRA) that learns what the renders of a run look like."""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace

import torch
from diffusers import UNet2DConditionModel
from torch import Tensor, nn
from torch.nn import functional as F

from ..cameras import Camera, camera_to_world
from ..guard import gradient_norm
from ..layout import Layout, Spec
from .guidance import Guidance
from .prior import DiffusionPrior


PROJECTIONS = ("to_q", "to_k", "to_v", "to_out.0", "add_k_proj", "add_v_proj")  # the last two in DeepFloyd IF only
ADAPTER = "variational"
POSE_NUMBERS = 12


class VariationalState:
    """What the variational score has learnt; a part of the run, so that the prior is left alone.

    Args:
        parameters: For each projection of the UNet's attention `<name>.lora_A` `(rank, in)` and `<name>.lora_B`
            `(out, rank)`, and `camera.0.weight`, `camera.0.bias`, `camera.1.weight`, `camera.1.bias` of two layers
            from a camera's pose to the width of the UNet's time embedding. float32.
        learning_rate: Of AdamW.
    """

    def __init__(self, parameters: dict[str, Tensor], learning_rate: float):
        # In an order of their own, whatever that of a file is: the optimiser's state is by number.
        self.parameters = {name: nn.Parameter(parameters[name]) for name in sorted(parameters)}
        self.optimizer = torch.optim.AdamW(self.parameters.values(), lr=learning_rate)

    @classmethod
    def begin(
        cls, unet: UNet2DConditionModel, rank: int, learning_rate: float, seed: int, device: torch.device
    ) -> "VariationalState":
        """A state that changes nothing yet: B and the last layer of the camera's embedding are 0.

        Args:
            seed: The other values are a function of it and of the UNet's layers.
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
        return {name: value.detach() for name, value in self.parameters.items()}


class VariationalScore:
    """eps_phi(z_t; y, t, c): the prior's denoiser with LoRA layers, told the camera.

    The layers stand in the UNet only while it is asked. Before and after, whatever happens in between, the UNet is the
    one that it was, with the same modules and keys.

    Args:
        prior: With the UNet.
        state: Of the run; learns in place.

    Raises:
        ValueError: If the UNet cannot be adapted, or not by this state.
    """

    def __init__(self, prior: DiffusionPrior, state: VariationalState):
        self.prior, self.state = prior, state
        self.layers = lora_layers(prior.unet, state.parameters)

    def predict_noise(self, z_t: Tensor, t: int, prompt: Guidance, camera: Camera) -> Tensor:
        """eps_phi of noisy latents `(1, C, h, w)` at timestep t, for the prompt alone."""
        with self._in_place(camera):
            return self.prior.predict_noise(z_t, t, prompt)

    def learn(
        self, z: Tensor, prompt: Guidance, camera: Camera, prediction: str, generator: torch.Generator | None
    ) -> Tensor:
        """One step of the optimizer on the denoising loss of a render: `add_gradients`, then `step`."""
        loss = self.add_gradients(z, prompt, camera, prediction, generator)
        self.step()
        return loss

    def step(self) -> None:
        """Step by the gradients of `add_gradients`."""
        self.state.optimizer.step()

    def norm(self) -> Tensor:
        """Norm `()` of the gradients of `add_gradients`."""
        return gradient_norm(self.state.parameters.values())

    def add_gradients(
        self, z: Tensor, prompt: Guidance, camera: Camera, prediction: str, generator: torch.Generator | None
    ) -> Tensor:
        """Set the gradients of the denoising loss of a render, at a timestep drawn from all of them.

        Args:
            z: `(1, C, h, w)` latent of the render.
            prediction: `"epsilon"` or `"v_prediction"`, see `denoising_loss`.
            generator: On the CPU.

        Returns:
            The loss, detached.
        """
        t = int(torch.randint(len(self.prior.alphas_cumprod), (), generator=generator))
        z_t, noise = self.prior.noisy(z, t, generator)
        prompt = replace(prompt, beside=self.prior.beside(z, generator))
        self.state.optimizer.zero_grad(set_to_none=True)
        with self._in_place(camera):
            predicted = self.prior.predict_noise(z_t, t, prompt)
            loss = denoising_loss(predicted, noise, float(self.prior.alphas_cumprod[t]), prediction)
            # The sum in place of the mean: in half precision small gradients vanish, and Adam minds no factor.
            (loss * noise.numel()).backward()
        return loss.detach()

    @contextmanager
    def _in_place(self, camera: Camera) -> Iterator[None]:
        """The UNet with the layers, and with the camera's embedding added to that of time, as class labels are."""
        unet = self.prior.unet
        added = camera_embedding(camera, self.state.parameters)
        hook = unet.time_embedding.register_forward_hook(lambda _, inputs, output: output + added.to(output.dtype))
        try:
            for name, layer in self.layers.items():
                unet.set_submodule(name, layer)
            yield
        finally:
            for name, layer in self.layers.items():
                unet.set_submodule(name, layer.get_base_layer())
            hook.remove()


def denoising_loss(predicted: Tensor, noise: Tensor, alpha_cumprod: float, prediction: str) -> Tensor:
    """Mean squared error of eps_phi, or that of the velocity v = alpha_t eps - sigma_t z that it stands for (Salimans
    and Ho 2022, "Progressive Distillation", appendix D): 1 / alpha_t^2 times the former, as z_t is the same. Where
    nothing is left of z (alpha_t = 0, with zero terminal SNR) z_t is the noise, whatever the model says: no loss.

    Args:
        predicted, noise: eps_phi and eps `(B, C, h, w)`.
        prediction: `"epsilon"` or `"v_prediction"`.
    """
    loss = F.mse_loss(predicted, noise)
    return loss / max(alpha_cumprod, 1e-6) if prediction == "v_prediction" else loss


def camera_embedding(camera: Camera, parameters: dict[str, Tensor]) -> Tensor:
    """`(width,)` from the camera's pose: two layers with a SiLU between."""
    first = parameters["camera.0.weight"]
    pose = camera_to_world(camera).flatten().to(first)
    hidden = F.silu(F.linear(pose, first, parameters["camera.0.bias"]))
    return F.linear(hidden, parameters["camera.1.weight"], parameters["camera.1.bias"])


def parameter_shapes(unet: UNet2DConditionModel, rank: int) -> dict[str, tuple[int, ...]]:
    """Shapes of the parameters of a `VariationalState` by name."""
    shapes: dict[str, tuple[int, ...]] = {}
    for name, module in unet.named_modules():
        if isinstance(module, nn.Linear) and name.endswith(tuple(f".{projection}" for projection in PROJECTIONS)):
            shapes[f"{name}.lora_A"] = (rank, module.in_features)
            shapes[f"{name}.lora_B"] = (module.out_features, rank)
    width = unet.time_embedding.linear_2.out_features
    shapes |= {"camera.0.weight": (width, POSE_NUMBERS), "camera.0.bias": (width,)}
    return shapes | {"camera.1.weight": (width, width), "camera.1.bias": (width,)}


def saved_layout(found: Layout, rank: int) -> Layout:
    """What a saved `VariationalState` must have, as far as that is known without the UNet: `lora_layers` compares the
    rest with it.

    Args:
        found: What the file has; the widths are its own.
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
    """
    Raises:
        ValueError: If peft is not installed, or the UNet has adapters already or nothing to adapt.
    """
    try:
        import peft  # noqa: F401
    except ImportError as error:
        raise ValueError("distillation='vsd' needs peft: pip install 'hifa[vsd]'.") from error
    if getattr(unet, "peft_config", None):
        raise ValueError(
            f"distillation='vsd' needs a UNet without adapters, and this one has {', '.join(unet.peft_config)}. Merge "
            "them first: fuse_lora(), then unload_lora_weights()."
        )
    if not any(name.endswith(".lora_A") for name in parameter_shapes(unet, rank=1)):
        raise ValueError(
            "distillation='vsd' adapts the linear projections of a UNet's attention, and this one has none."
        )


def lora_layers(unet: UNet2DConditionModel, parameters: dict[str, nn.Parameter]) -> dict[str, nn.Module]:
    """peft's LoRA layers around the UNet's own, by name, made of the given parameters; the UNet stays without them.

    Raises:
        ValueError: See `VariationalScore`.
    """
    check_adaptable(unet)
    from peft import LoraConfig

    names = [name.removesuffix(".lora_A") for name in parameters if name.endswith(".lora_A")]
    rank = len(parameters[f"{names[0]}.lora_A"])
    if parameter_shapes(unet, rank) != {name: tuple(value.shape) for name, value in parameters.items()}:
        raise ValueError(
            "The run's LoRA weights do not fit this model's UNet. Continue the run with the model that it began with."
        )
    try:
        # Without values: those that peft draws, from the global generator, are not wanted.
        with torch.device("meta"):
            unet.add_adapter(LoraConfig(r=rank, lora_alpha=rank, target_modules=names), ADAPTER)
        layers = {name: unet.get_submodule(name) for name in names}
    finally:
        unet.unload_lora()
    for name, layer in layers.items():
        layer.lora_A[ADAPTER].weight = parameters[f"{name}.lora_A"]
        layer.lora_B[ADAPTER].weight = parameters[f"{name}.lora_B"]
    return layers
