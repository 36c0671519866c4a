"""Training: crops of one volume against what the generator makes, in the published orders or with one fake batch."""

import math
from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from headwater import DataError, Trainer, UsageError
from torch import Tensor, nn

from headwater_porous_gan.config import PorousConfig
from headwater_porous_gan.networks import Discriminator, Generator
from headwater_porous_gan.objective import (
    critic_loss,
    discriminator_loss,
    generator_loss,
    gradient_penalty,
    noise_level,
)
from headwater_porous_gan.selection import Best, judge, morphology

__all__ = ["PorousTrainer", "crop", "windows"]

DOUBLE_STEP = 64
"""The crop for which the published code with noise makes two steps of the generator from one gradient."""


def crop(phase: np.ndarray, side: int, n: int, stride: int | None, turned: bool, generator: torch.Generator) -> Tensor:
    """``n`` crops (n, 1, side, side, side) of a uint8 volume.

    Args:
        phase: (d0, d1, d2), no axis shorter than ``side``.
        side: edge of a crop.
        n: how many.
        stride: crops begin at multiples of it; anywhere without.
        turned: whether each is mirrored and its axes exchanged at random, for isotropic material.
        generator: of all randomness.
    """
    step = stride or 1
    counts = torch.tensor([(d - side) // step + 1 for d in phase.shape])
    starts = ((torch.rand(n, 3, generator=generator, dtype=torch.float64) * counts).long() * step).tolist()
    crops = np.empty((n, 1, side, side, side), np.uint8)
    orders = torch.rand(n, 3, generator=generator).argsort(1).tolist() if turned else None
    mirrors = (torch.rand(n, 3, generator=generator) < 0.5).tolist() if turned else None
    for i, (a, b, c) in enumerate(starts):
        cut = np.asarray(phase[a : a + side, b : b + side, c : c + side])
        if orders is not None and mirrors is not None:
            cut = np.flip(cut.transpose(orders[i]), tuple(axis for axis in range(3) if mirrors[i][axis]))
        crops[i, 0] = cut
    return torch.from_numpy(crops)


def windows(field: Tensor, side: int) -> Tensor:
    """The windows (k^3 B, 1, side, side, side) that fields (B, 1, k side, k side, k side) are made of."""
    b, k = len(field), field.shape[-1] // side
    apart = field.reshape(b, k, side, k, side, k, side).permute(0, 1, 3, 5, 2, 4, 6)
    return apart.reshape(-1, 1, side, side, side)


class PorousTrainer(Trainer):
    """Trains generator and discriminator; ``validate`` keeps the weights with the best morphology in ``best``."""

    averaged = ("generator",)
    config: PorousConfig

    @classmethod
    def facts(cls, config: PorousConfig, task: Any) -> dict[str, Any]:
        volume = task.training_volume()
        if volume is None:
            return {}
        found = {"morphology": morphology(volume.phase)}
        return found if volume.voxel_size is None else {**found, "voxel_size": volume.voxel_size}

    @classmethod
    def build(cls, config: PorousConfig, task: Any, facts: Mapping[str, Any]) -> dict[str, nn.Module]:
        def generator() -> Generator:
            return Generator(config.side, config.nz, config.ngf, config.extra_layers, config.biases)

        discriminator = Discriminator(
            config.side, config.ndf, config.discriminator_extra_layers,
            0.0 if config.variant == "smooth" else config.dropout, config.dropout_of, config.objective == "gan",
        )  # fmt: skip
        return {"generator": generator(), "discriminator": discriminator, "best": Best(generator())}

    def setup(self) -> None:
        config = self.config
        volume = self.task.training_volume()
        if volume is None:
            raise UsageError("task.path is needed: the file or folder with the volume to train on")
        self.phase = volume.phase
        if min(self.phase.shape) < config.side:
            raise DataError(
                f"the volume of {' x '.join(map(str, self.phase.shape))} voxels is smaller than the crops of "
                f"{config.side}^3 that trainer.side asks for; a smaller side, 8, 16, 32, ..., would do"
            )
        self.layout = torch.contiguous_format if config.order == "official" else torch.channels_last_3d
        for name in ("generator", "discriminator"):
            self.modules[name].to(memory_format=self.layout)  # type: ignore[call-overload]
        self.generator: Any = self.modules["generator"]
        self.discriminator: Any = self.modules["discriminator"]
        rates = {"generator": config.lr, "discriminator": config.lr_discriminator}
        self.optimisers = {
            name: torch.optim.Adam(self.modules[name].parameters(), lr, (config.beta1, 0.999), fused=True)
            for name, lr in rates.items()
        }
        if config.decay_steps:
            total = config.decay_steps

            def cosine(k: int) -> float:
                return 0.5 * (1 + math.cos(math.pi * min(1.0, k / total)))

            self.schedulers = {
                name: torch.optim.lr_scheduler.LambdaLR(optimiser, cosine)
                for name, optimiser in self.optimisers.items()
            }
        self.steps = 0

    @property
    def draws(self) -> tuple[int, int]:
        """How many batches of crops, and of latents, a step needs."""
        config = self.config
        if config.objective == "wgan-gp":
            return config.critic_steps, config.critic_steps + 1
        return 1, 2 if config.order == "official" and config.variant == "smooth" else 1

    def draw(self, k: int, generator: torch.Generator) -> dict[str, Any]:
        config = self.config
        real, latents = self.draws
        crops = crop(self.phase, config.side, real * config.batch_size, config.stride, self.task.isotropic, generator)
        # A crop has four cells; a field has eight windows.
        n = 8 + self.generator.rim if config.windows == "stationary" else 1
        made = math.ceil(config.batch_size / 8) if config.windows == "stationary" else config.batch_size
        noise = 0.0
        if config.variant != "smooth":
            noise = noise_level(1 + k // config.epoch_steps, config.noise, config.schedule, config.epochs)
        return {
            "k": k,
            "noise": noise,
            "seed": int(torch.randint(1 << 62, (), generator=generator)),
            "real": crops.view(real, config.batch_size, *crops.shape[1:]),
            "z": torch.randn(latents, made, config.nz, n, n, n, generator=generator),
        }

    def step(self, batch: dict[str, Any]) -> dict[str, Tensor]:
        self.steps = batch["k"] + 1
        self._noise = batch["noise"]
        self._random = torch.Generator(self.place.device).manual_seed(batch["seed"])
        dtype = next(self.generator.parameters()).dtype
        real = batch["real"].to(dtype).mul_(2).sub_(1)
        z = batch["z"].to(dtype)
        if self.config.objective == "wgan-gp":
            return self._wasserstein(real, z)
        x = real[0].contiguous(memory_format=self.layout)
        if self.config.order == "shared":
            return self._shared(x, z[0])
        return self._smooth(x, z) if self.config.variant == "smooth" else self._noisy_order(x, z[0])

    def _make(self, z: Tensor) -> Tensor:
        if self.config.windows == "stationary":
            field = self.generator.interior(z.contiguous(memory_format=self.layout))
            return windows(field, self.config.side)[: self.config.batch_size].contiguous(memory_format=self.layout)
        if self.config.order == "official":  # to the last bit, for a rectifier's kink makes more of a difference
            return self.generator(z)
        return self.generator.quick(z.contiguous(memory_format=self.layout))

    def _judge(self, x: Tensor) -> Tensor:
        """D's logits of x with the noise of the epoch on it."""
        if self._noise:
            x = x + self._noise * torch.empty_like(x).normal_(generator=self._random)
        return self.discriminator(x).float()

    def _update_discriminator(self, x: Tensor, fake: Tensor) -> dict[str, Tensor]:
        label = 1.0 if self.config.variant == "noise" else self.config.label
        on_real, on_fake = self._judge(x), self._judge(fake)
        loss_real, loss_fake = discriminator_loss(on_real, on_fake, label)
        self.update(loss_real + loss_fake, "discriminator", len(x))
        return {
            "loss_real": loss_real.detach(), "loss_fake": loss_fake.detach(),
            "d_real": on_real.detach().sigmoid().mean(), "d_fake": on_fake.detach().sigmoid().mean(),
        }  # fmt: skip

    def _update_generator(self, fake: Tensor) -> dict[str, Tensor]:
        self.discriminator.requires_grad_(False)  # its gradients would be thrown away
        loss = generator_loss(self._judge(fake))
        self.update(loss, "generator", len(fake))
        self.discriminator.requires_grad_(True)
        return {"loss_generator": loss.detach()}

    def _shared(self, x: Tensor, z: Tensor) -> dict[str, Tensor]:
        """One batch of fakes for both steps; the generator's sees the discriminator after its step."""
        fake = self._make(z)
        return self._update_discriminator(x, fake.detach()) | self._update_generator(fake)

    def _smooth(self, x: Tensor, z: Tensor) -> dict[str, Tensor]:
        """The order of the PyTorch code: new fakes for the generator's step."""
        with torch.no_grad():
            fake = self._make(z[0])
        return self._update_discriminator(x, fake) | self._update_generator(self._make(z[1]))

    def _noisy_order(self, x: Tensor, z: Tensor) -> dict[str, Tensor]:
        """The order of the Lua code: the generator's gradient is that of the outputs before the discriminator's step.

        For crops of 64^3 the generator makes two steps by that one gradient. (Lua's second backward pass runs through
        the discriminator's new weights on the old outputs; here it runs through the weights that made them.)
        """
        fake = self._make(z)
        seen = fake.detach().requires_grad_()
        on_real, on_fake = self._judge(x), self._judge(seen)
        loss = generator_loss(on_fake)
        (through,) = torch.autograd.grad(loss, seen, retain_graph=True)
        loss_real, loss_fake = discriminator_loss(on_real, on_fake, 1.0)
        self.update(loss_real + loss_fake, "discriminator", len(x))
        parameters = list(self.generator.parameters())
        gradients = torch.autograd.grad(fake, parameters, through)
        for _ in range(2 if self.config.side == DOUBLE_STEP else 1):
            linear = torch.stack([(p * g).sum() for p, g in zip(parameters, gradients, strict=True)]).sum()
            self.update(linear, "generator", len(x))
        return {
            "loss_real": loss_real.detach(), "loss_fake": loss_fake.detach(), "loss_generator": loss.detach(),
            "d_real": on_real.detach().sigmoid().mean(), "d_fake": on_fake.detach().sigmoid().mean(),
        }  # fmt: skip

    def _wasserstein(self, real: Tensor, z: Tensor) -> dict[str, Tensor]:
        for x, latent in zip(real, z, strict=False):
            with torch.no_grad():
                fake = self._make(latent)
            loss = critic_loss(self._judge(x), self._judge(fake))
            mix = torch.rand(len(x), 1, 1, 1, 1, generator=self._random, device=x.device, dtype=x.dtype)
            penalty = gradient_penalty(self.discriminator, x, fake, mix)
            self.update(loss + self.config.penalty * penalty, "discriminator", len(x))
        self.discriminator.requires_grad_(False)
        loss_generator = -self._judge(self._make(z[-1])).mean()
        self.update(loss_generator, "generator", real.shape[1])
        self.discriminator.requires_grad_(True)
        return {
            "loss_critic": loss.detach(), "penalty": penalty.detach(), "loss_generator": loss_generator.detach(),
        }  # fmt: skip

    def validate(self) -> dict[str, float]:
        """Errors of the averaged generator's volume; the best weights so far are kept."""
        generator: Any = self.averages.get("generator", self.generator)
        config = self.config
        found, stats = judge(generator, self.facts_found["morphology"], config.judged_cells, config.judged)
        best: Any = self.modules["best"]
        best.consider(generator, stats, found["score"], self.steps, self.steps % config.select_every == 0)
        return found
