"""The losses of the paper, the noise schedules of its training, and the Wasserstein loss offered beside them."""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

__all__ = [
    "critic_loss",
    "discriminator_loss",
    "generator_loss",
    "gradient_penalty",
    "noise_level",
]


def discriminator_loss(real: Tensor, fake: Tensor, label: float = 1.0) -> tuple[Tensor, Tensor]:
    """BCE(D(x), label) and BCE(D(G(z)), 0), means over the batch; L_D is their sum.

    Args:
        real: logits (B, 1) of the real volumes.
        fake: logits (B, 1) of the generated ones.
        label: t_real; below 1 it is one-sided label smoothing.
    """
    on_real = F.binary_cross_entropy_with_logits(real, torch.full_like(real, label))
    return on_real, F.binary_cross_entropy_with_logits(fake, torch.zeros_like(fake))


def generator_loss(fake: Tensor) -> Tensor:
    """BCE(D(G(z)), 1): the generator's loss that does not saturate, from logits (B, 1)."""
    return F.binary_cross_entropy_with_logits(fake, torch.ones_like(fake))


def critic_loss(real: Tensor, fake: Tensor) -> Tensor:
    """E D(G(z)) - E D(x): minus the critic's estimate of the Wasserstein distance; G minimises -E D(G(z))."""
    return fake.mean() - real.mean()


def gradient_penalty(critic: nn.Module, real: Tensor, fake: Tensor, mix: Tensor) -> Tensor:
    """E (|grad_u D(u)| - 1)^2 at u = mix x + (1 - mix) G(z), the norm taken over all voxels of a volume.

    Args:
        critic: maps volumes (B, 1, S, S, S) to (B, 1).
        real: volumes x.
        fake: volumes G(z), detached.
        mix: (B, 1, 1, 1, 1) in [0, 1].
    """
    between = (mix * real + (1 - mix) * fake).requires_grad_()
    (gradient,) = torch.autograd.grad(critic(between).sum(), between, create_graph=True)
    return (gradient.flatten(1).norm(dim=1) - 1).square().mean()


def noise_level(epoch: int, start: float, schedule: str, epochs: int) -> float:
    """Standard deviation of the noise on the discriminator's input in epoch e = 1, 2, ... of E.

    - ``constant``: s_e = s_0
    - ``linear``, what was plainly meant: s_e = s_0 (1 - e / E)
    - ``official64``, what was run on 64^3: s <- max(s - 0.1 e / E, 0) at the start of each epoch, so it falls with
      e (e + 1) / 2 and is 0 after about sqrt(2 E) epochs
    - ``official128``, what was run on 128^3: s <- max(s - 0.1 (e - 1) / 100, 0), 0 from epoch 15 on

    Both official ones start at s_0 = 0.1; with another start the fall is as much larger or smaller.
    """
    if schedule == "constant":
        level = 1.0
    elif schedule == "linear":
        level = 1 - epoch / epochs
    elif schedule == "official64":
        level = 1 - epoch * (epoch + 1) / 2 / epochs
    else:
        level = 1 - epoch * (epoch - 1) / 2 / 100
    return start * max(level, 0.0)
