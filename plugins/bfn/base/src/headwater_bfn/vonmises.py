"""Angles: the von Mises Bayesian flow of CrysBFN (Wu et al., ICLR 2025).

The belief on an angle is von Mises with mean m and concentration c; it starts uniform, c = 0. A message y of accuracy
alpha ~ vM(x, alpha) adds to it as a vector: concentrations point in the direction of their angle. So how much a message
teaches depends on where it falls; accuracies do not add up as they do for Gaussians, and a network has to be told c.

All angles are in radians, in [-pi, pi). Bessel functions are the scaled ones: I0 itself overflows single precision
from a concentration of 89 on.
"""

import math
from typing import NamedTuple

import torch
from torch import Tensor

__all__ = [
    "Angles",
    "Bank",
    "Belief",
    "entropy",
    "flow",
    "inverse_mean_resultant",
    "kl",
    "log_accuracy",
    "log_density",
    "log_i0",
    "loss_discrete",
    "mean_resultant",
    "moments",
    "sample",
    "update",
    "wrap",
]  # fmt: skip

LOG_2PI = math.log(2 * math.pi)


class Belief(NamedTuple):
    """A von Mises belief on each angle: mean in [-pi, pi) and concentration, of one shape."""

    mean: Tensor
    concentration: Tensor


def wrap(angle: Tensor) -> Tensor:
    """The angle in [-pi, pi) that is equal to ``angle`` up to whole turns (exact multiples of pi may come as +pi)."""
    return angle - 2 * math.pi * (angle / (2 * math.pi)).round()


def log_i0(k: Tensor) -> Tensor:
    """log I0(k).

    Example:
        >>> round(float(log_i0(torch.tensor(1000.0, dtype=torch.float64))), 4)
        995.6273
    """
    return torch.special.i0e(k).log() + k


def mean_resultant(k: Tensor) -> Tensor:
    """A(k) = I1(k)/I0(k), the mean cosine of an angle around its centre."""
    return torch.special.i1e(k) / torch.special.i0e(k)


def inverse_mean_resultant(r: Tensor) -> Tensor:
    """The concentration k with A(k) = r, for r in [0, 1).

    Newton's method on A' = 1 - A/k - A^2; for 1 - r below 1e-6 the limit 1/(2 (1 - r)).

    Example:
        >>> k = torch.tensor([0.5, 5.0, 500.0], dtype=torch.float64)
        >>> torch.allclose(inverse_mean_resultant(mean_resultant(k)), k, rtol=1e-10)
        True
    """
    k = r * (2 - r * r) / (1 - r * r)
    for _ in range(5):
        a = mean_resultant(k)
        slope = torch.where(k > 1e-6, 1 - a / k.clamp_min(1e-6) - a * a, 0.5)
        k = (k - (a - r) / slope).clamp_min(0)
    return torch.where(1 - r < 1e-6, 0.5 / (1 - r), k)


def entropy(k: Tensor) -> Tensor:
    """H(k) = log 2 pi + log I0(k) - k A(k), in nats. Give it double precision: single is wrong in the third decimal."""
    return LOG_2PI + log_i0(k) - k * mean_resultant(k)


def log_density(x: Tensor, mean: Tensor, k: Tensor) -> Tensor:
    """log vM(x; mean, k)."""
    return k * (torch.cos(x - mean) - 1) - torch.special.i0e(k).log() - LOG_2PI


def kl(mean1: Tensor, k1: Tensor, mean2: Tensor, k2: Tensor) -> Tensor:
    """KL(vM(mean1, k1) || vM(mean2, k2)) = log I0(k2)/I0(k1) + A(k1) (k1 - k2 cos(mean1 - mean2))."""
    return log_i0(k2) - log_i0(k1) + mean_resultant(k1) * (k1 - k2 * torch.cos(mean1 - mean2))


def update(belief: Belief, y: Tensor, accuracy: float | Tensor, epsilon: float = 0.0) -> Belief:
    """The belief after the message y: the sum of two vectors.

    ``epsilon`` is added to both arguments of atan2 in the authors' code, which breaks translation equivariance; it is
    for comparison only.

    Example:
        >>> b = update(Belief(torch.tensor(0.0), torch.tensor(3.0)), torch.tensor(math.pi / 2), 4.0)
        >>> round(float(b.concentration), 5), round(float(b.mean), 5)
        (5.0, 0.9273)
    """
    mean, c = belief
    sine = accuracy * torch.sin(y) + c * torch.sin(mean)
    cosine = accuracy * torch.cos(y) + c * torch.cos(mean)
    return Belief(torch.atan2(sine + epsilon, cosine + epsilon), torch.hypot(cosine, sine))


def loss_discrete(x: Tensor, estimate: Tensor, accuracy: Tensor, n: int) -> Tensor:
    """n alpha A(alpha) (1 - cos(x - xhat)), element by element: n KL(sender || receiver) of a message.

    Args:
        x: the angles.
        estimate: the network's estimate of them.
        accuracy: alpha_i of the message, in double precision if it is large.
        n: how many messages there are.
    """
    weight = (n * accuracy * mean_resultant(accuracy)).to(x.dtype)
    return weight * (1 - torch.cos(x - estimate))


def log_accuracy(concentration: Tensor, beta1: float, epsilon: float = 1e-7) -> Tensor:
    """The log of the concentration on a scale from 0 (nothing known) to about 1 (beta1), for the network to read."""
    low = math.log(epsilon)
    return ((concentration + epsilon).log() - low) / (math.log(beta1) - low)


def moments(alpha: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Exact E[C], Var[C], Var[S] of the vector (C, S) = sum_j alpha_j (cos y_j, sin y_j), y_j ~ vM(0, alpha_j).

    E[S] is 0, and E[C] = Var[S], because the variance of the sine is A/alpha.
    """
    a = mean_resultant(alpha)
    expected = (alpha * a).sum(-1)
    return expected, (alpha.square() * (1 - a / alpha - a.square())).sum(-1), expected


def sample(mean: Tensor, concentration: Tensor, generator: torch.Generator | None = None, rounds: int = 24) -> Tensor:
    """Draw from vM(mean, concentration), each angle with a concentration of its own.

    The rejection method of Best and Fisher (1979), with ``rounds`` proposals at once and the first accepted one taken,
    so that nothing waits for the device. At least 65 % of proposals are accepted, so one draw in 1e11 takes its last
    proposal unaccepted. For many draws at few concentrations use :class:`Angles`.
    """
    k = concentration.double().expand(mean.shape)
    tau = 1 + (1 + 4 * k * k).sqrt()
    small = k < 1e-5  # the formula for r loses its digits there, and 1/k is its limit
    rho = (tau - (2 * tau).sqrt()) / (2 * k).clamp_min(1e-300)
    safe = k.clamp_min(1e-300)
    r = torch.where(small, 1 / safe, (1 + rho * rho) / (2 * rho).clamp_min(1e-300))
    u = torch.rand((3, rounds, *k.shape), dtype=torch.float64, device=k.device, generator=generator)
    z = torch.cos(math.pi * u[0])
    f = torch.where(small, z, (1 + r * z) / (r + z))
    c = k * (r - f)
    accepted = torch.where(small, torch.ones_like(u[1], dtype=torch.bool), (c / u[1]).log() + 1 - c >= 0)
    accepted[-1] = True
    first = accepted.to(torch.uint8).argmax(0, keepdim=True)
    angle = torch.acos(f.clamp(-1, 1)).gather(0, first)[0] * torch.where(u[2, 0] < 0.5, -1.0, 1.0)
    return wrap(mean + angle.to(mean.dtype))


class Angles:
    """Draws of vM(0, alpha_j) for a fixed list of accuracies, by their inverse distribution functions.

    Each accuracy has a grid of ``cells`` cells over +-min(pi, 12/sqrt(alpha)), in each of which the density is taken as
    linear. One search in one table finds the cells of all draws, whatever their accuracies.

    Example:
        >>> angles = Angles(torch.tensor([0.5, 50.0], dtype=torch.float64))
        >>> y = angles.draw(torch.ones(20000, dtype=torch.long), torch.Generator().manual_seed(0))
        >>> a = mean_resultant(angles.alpha[1])
        >>> bool((y.cos().mean() - a).abs() < 4 * (y.cos().std() / 20000**0.5))
        True
    """

    def __init__(self, alpha: Tensor, cells: int = 1024) -> None:
        self.alpha, self.cells = alpha.double(), cells
        a = self.alpha.unsqueeze(1)
        reach = (12 / a.sqrt()).clamp_max(math.pi)
        x = reach * torch.linspace(-1, 1, 2 * cells + 1, dtype=torch.float64, device=alpha.device)
        density = (a * (x.cos() - 1)).exp()
        ends, middles = density[:, ::2], density[:, 1::2]
        mass = (ends[:, :-1] + 4 * middles + ends[:, 1:]) / 6  # Simpson's rule
        total = mass.sum(1, keepdim=True)
        below = torch.nn.functional.pad((mass / total).cumsum(1), (1, 0))
        below[:, -1] = 1
        row = torch.arange(len(alpha), dtype=torch.float64, device=alpha.device).unsqueeze(1)
        self.upper = (below[:, 1:] + row).flatten()
        self.below, self.mass = below[:, :-1].flatten(), (mass / total).flatten()
        self.left, self.right = ends[:, :-1].flatten(), ends[:, 1:].flatten()
        self.start, self.width = -reach.squeeze(1), 2 * reach.squeeze(1) / cells

    def draw(self, j: Tensor, generator: torch.Generator | None = None) -> Tensor:
        """One angle for each index ``j`` into the accuracies, in double precision."""
        u = torch.rand(j.shape, dtype=torch.float64, device=j.device, generator=generator)
        cell = torch.searchsorted(self.upper, u + j, right=True).minimum((j + 1) * self.cells - 1)
        cell = cell.maximum(j * self.cells)
        share = ((u - self.below[cell]) / self.mass[cell]).clamp(0, 1)
        left, right = self.left[cell], self.right[cell]
        within = share * (left + right) / (left + (left.square() + (right.square() - left.square()) * share).sqrt())
        return self.start[j] + self.width[j] * (cell - j * self.cells + within)


def flow(x: Tensor, steps: Tensor, angles: Angles, generator: torch.Generator | None = None) -> Belief:
    """The belief on ``x`` after the first ``steps`` messages, each of them drawn.

    The messages of all angles are drawn together, and no more than are needed; in law this equals a chain of updates.

    Args:
        x: the angles.
        steps: how many messages each has had, of the shape of ``x``; after none the mean is drawn uniformly.
        angles: draws of the schedule's accuracies.
        generator: source of the messages.
    """
    owner = torch.repeat_interleave(torch.arange(x.numel(), device=x.device), steps.flatten())
    first = torch.repeat_interleave(steps.flatten().cumsum(0) - steps.flatten(), steps.flatten())
    j = torch.arange(len(owner), device=x.device) - first
    y, a = angles.draw(j, generator), angles.alpha[j]
    zero = torch.zeros(x.numel(), dtype=torch.float64, device=x.device)
    cosine, sine = zero.index_add(0, owner, a * y.cos()), zero.index_add(0, owner, a * y.sin())
    deviation = torch.atan2(sine, cosine).view(x.shape)
    return _around(x, deviation, torch.hypot(cosine, sine).view(x.shape), steps, generator)


def _around(
    x: Tensor, deviation: Tensor, concentration: Tensor, steps: Tensor, generator: torch.Generator | None
) -> Belief:
    """Turn a belief on the angle 0 to x; the mean of one that has had no message is uniform."""
    u = torch.rand(x.shape, dtype=x.dtype, device=x.device, generator=generator)
    mean = torch.where(steps == 0, (2 * u - 1) * math.pi, wrap(x + deviation.to(x.dtype)))
    return Belief(mean, concentration.to(x.dtype))


class Bank:
    """Trajectories of beliefs on the angle 0, from which flows are drawn by a look-up.

    By symmetry the flow of any x is that of 0 turned by x, and the mirror image of a trajectory is as likely as itself.
    So ``size`` trajectories of n messages are simulated once, and a draw is one gather and one rotation, where the
    simulation costs n draws. Make a new bank (with another seed) from time to time when training.

    Example:
        >>> bank = Bank(Angles(torch.tensor([1.0, 2.0, 4.0], dtype=torch.float64)), size=8)
        >>> belief = bank.flow(torch.zeros(5), torch.tensor([0, 1, 1, 2, 3]), torch.Generator().manual_seed(0))
        >>> belief.concentration[:3].tolist()  # none, and exactly alpha_1 after one message
        [0.0, 1.0, 1.0]
    """

    def __init__(self, angles: Angles, size: int | None = None, seed: int = 0) -> None:
        n = len(angles.alpha)
        self.size = size or max(min(65536, 2**22 // n), 1024)
        device = angles.alpha.device
        generator = torch.Generator(device).manual_seed(seed)
        self.deviation = torch.zeros(n + 1, self.size, device=device)
        self.concentration = torch.zeros(n + 1, self.size, device=device)
        total = torch.zeros(2, self.size, dtype=torch.float64, device=device)
        slab = max(1, 2**19 // self.size)
        for begin in range(0, n, slab):
            j = torch.arange(begin, min(begin + slab, n), device=device)
            y = angles.draw(j.unsqueeze(1).expand(-1, self.size), generator)
            vectors = torch.stack([y.cos(), y.sin()], 1) * angles.alpha[j, None, None]
            sums = total + vectors.cumsum(0)
            total = sums[-1]
            self.deviation[j + 1] = torch.atan2(sums[:, 1], sums[:, 0]).float()
            self.concentration[j + 1] = torch.hypot(sums[:, 0], sums[:, 1]).float()

    def flow(self, x: Tensor, steps: Tensor, generator: torch.Generator | None = None) -> Belief:
        """The belief on ``x`` after ``steps`` messages, which broadcasts against it."""
        pick = torch.randint(2 * self.size, x.shape, device=x.device, generator=generator)
        place = steps * self.size + pick // 2
        deviation = self.deviation.flatten()[place] * (1 - 2 * (pick % 2))
        return _around(x, deviation, self.concentration.flatten()[place], steps, generator)
