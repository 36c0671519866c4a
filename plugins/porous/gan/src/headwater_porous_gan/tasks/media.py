"""Embedded media, made in seconds without a download, each named as what it is: a stand-in, not a scan.

``bead-pack`` is a periodic pack of equal spheres whose statistics equal those published for the scanned bead pack.
``spheres`` (overlapping spheres) and ``field`` (a truncated Gaussian field) are the classical baselines.
"""

import math
import sys
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Literal

import numpy as np
import scipy.ndimage
import scipy.special
from headwater.errors import DataError, UsageError
from pydantic import Field, NonNegativeInt, PositiveFloat
from scipy.spatial import cKDTree

from headwater_porous_gan.tasks import formats
from headwater_porous_gan.tasks.volume import PorousTask, ScoreConfig
from headwater_porous_gan.volume import Volume

__all__ = [
    "Medium",
    "MediumConfig",
    "Pack",
    "crystalline",
    "field",
    "fitted_sigma",
    "overlapping_spheres",
    "pack",
    "voxelise",
]

POROSITY = 0.3626
"""Of the published bead pack."""

RADIUS = 25.4
"""Radius of its beads in voxels, calibrated on the surface of the voxelised pack."""

BOX = 256
"""Edge of the box in voxels: smaller ones hold too few beads and jam or order."""

VOXEL = 3e-6
"""Edge of its voxels in metres."""

NAMES = {
    "bead-pack": "stand-in: equal spheres by shrinking repulsion, statistics of the published bead pack; not a scan",
    "spheres": "baseline: overlapping equal spheres at random; not a scan",
    "field": "baseline: truncated Gaussian field; not a scan",
}


class MediumConfig(ScoreConfig):
    """Which medium, how large and from which seed."""

    medium: Literal["bead-pack", "spheres", "field"] = Field(
        "bead-pack", description="equal spheres that hardly touch; overlapping spheres; truncated Gaussian field"
    )
    edge: int = Field(128, ge=32, le=1024, description="edge of the volume in voxels")
    resolution: Literal["full", "half", "quarter"] = Field(
        "quarter",
        description="of the bead pack: beads of 51 voxels, as scanned, of 25, or of 13 (a crop of 32 sees several)",
    )
    porosity: float = Field(POROSITY, gt=0, lt=1, description="porosity of spheres and field")
    radius: PositiveFloat = Field(12.7, description="radius of overlapping spheres, in voxels")
    sigma: PositiveFloat = Field(4.0, description="standard deviation of the field's Gaussian filter, in voxels")
    seed: NonNegativeInt = Field(0, description="of the medium, not of training")
    isotropic: bool = Field(True, description="the material is isotropic: crops may be flipped and turned")


@dataclass(frozen=True)
class Pack:
    """Equal spheres in a periodic box of edge ``box``.

    Args:
        centres: float64 (N, 3) in [0, box).
        radius: of all spheres.
        box: edge of the box.
        overlap: the largest 2 R - distance, in radii.
        order: height of the highest peak of the structure factor, in N^2; crystals have more than 0.4.
        seed: that gave it; a seed that crystallises is passed over.
    """

    centres: np.ndarray
    radius: float
    box: float
    overlap: float
    order: float
    seed: int


def pack(box: int = BOX, radius: float = RADIUS, porosity: float = POROSITY, seed: int = 0, tries: int = 20) -> Pack:
    """A disordered pack of equal spheres by repulsion under shrinking radii.

    From uniform centres the outer radius R (1 + 0.12 (1 - i/1500)) shrinks to R in 1,500 steps, in which each
    overlapping pair is pushed apart along its line by a quarter of the overlap on each side; then momentum
    v <- 0.8 v + 0.3 push (half the overlap), until the largest overlap is below 1 % of R. R follows from the number
    of spheres, (1 - porosity) box^3 / (4/3 pi R^3).

    Args:
        box: edge of the periodic box.
        radius: about which.
        porosity: of the pack.
        seed: the first one tried.
        tries: seeds to try before giving up.

    Raises:
        DataError: every seed crystallised or jammed: the box holds too few spheres.
    """
    solid = 1 - porosity
    number = round(solid * box**3 / (4 / 3 * math.pi * radius**3))
    if number < 1:
        raise UsageError(f"a box of edge {box} holds no sphere of radius {radius}")
    exact = (solid * box**3 / (4 / 3 * math.pi * number)) ** (1 / 3)
    for own in range(seed, seed + tries):
        centres = np.random.default_rng([own, 0xBEAD]).uniform(0, box, (number, 3))
        centres, overlap = _repel(centres, float(box), exact)
        order = crystalline(centres, float(box), exact)
        if overlap < 0.01 and order < 0.4:
            return Pack(centres, exact, float(box), overlap, order, own)
    raise DataError(
        f"no disordered pack of {number} spheres in a box of edge {box} from {tries} seeds; the box needs about 130 "
        "spheres at least"
    )


def _repel(centres: np.ndarray, box: float, radius: float, steps: int = 1500) -> tuple[np.ndarray, float]:
    x = centres.copy()
    velocity = np.zeros_like(x)
    skin = 0.3 * radius
    at = x.copy()  # where the list of neighbours was made
    pairs = np.empty((0, 2), np.int64)
    reach = 0.0
    overlap = math.inf
    for i in range(steps + 2000):
        outer = radius * (1 + 0.12 * max(0.0, 1 - i / steps))
        moved = x - at
        if reach == 0.0 or (moved * moved).sum(1).max() > (skin / 2) ** 2:
            reach = 2 * outer + skin
            pairs = cKDTree(x % box, boxsize=box).query_pairs(reach, output_type="ndarray")
            at = x.copy()
        a, b = pairs[:, 0], pairs[:, 1]
        d = x[a] - x[b]
        d -= box * np.rint(d / box)
        distance = np.sqrt((d * d).sum(1))
        touching = distance < 2 * outer
        if i >= steps:
            overlap = float((2 * radius - distance[touching]).max(initial=0.0)) / radius
            if overlap < 0.01:
                break
        a, b, d, distance = a[touching], b[touching], d[touching], distance[touching]
        share = 0.25 if i < steps else 0.5
        push = d * (share * (2 * outer - distance) / np.maximum(distance, 1e-9))[:, None]
        force = np.stack(
            [np.bincount(a, push[:, k], len(x)) - np.bincount(b, push[:, k], len(x)) for k in range(3)], axis=1
        )
        if i < steps:
            x = x + force
        else:
            velocity = 0.8 * velocity + 0.3 * force
            x = x + velocity
    return x % box, overlap


def crystalline(centres: np.ndarray, box: float, radius: float) -> float:
    """Highest |sum_j exp(2 pi i h.x_j / L)|^2 / N^2 over box wave vectors h with 0.6 < |h| 2R/L < 1.5.

    Amorphous packs of 156 spheres have 0.1 to 0.35, crystals 0.5 to 1.
    """
    most = math.floor(1.5 * box / (2 * radius))
    axis = np.arange(-most, most + 1)
    h = np.stack(np.meshgrid(axis[axis >= 0], axis, axis, indexing="ij"), -1).reshape(-1, 3)
    size = np.sqrt((h * h).sum(1)) * 2 * radius / box
    h = h[(size > 0.6) & (size < 1.5)]
    highest = 0.0
    for block in np.array_split(h, max(1, len(h) // 4096)):
        phase = 2 * math.pi / box * (block @ centres.T)
        power = np.cos(phase).sum(1) ** 2 + np.sin(phase).sum(1) ** 2
        highest = max(highest, float(power.max(initial=0.0)))
    return highest / len(centres) ** 2


def voxelise(spheres: Pack, edge: int, scale: float = 1.0) -> np.ndarray:
    """uint8 (edge, edge, edge): 1 where the centre of a voxel lies in a sphere or one of its periodic images.

    ``scale`` voxels are one unit of the pack; an edge of ``scale`` times the box is one period, a smaller one a cut
    from its corner, a larger one several periods.
    """
    out = np.zeros((edge, edge, edge), np.uint8)
    radius, box = spheres.radius * scale, spheres.box * scale
    images = range(-1, math.ceil(edge / box) + 1)
    for centre in spheres.centres * scale:
        starts = [
            [centre[a] + box * m for m in images if -radius <= centre[a] + box * m <= edge + radius] for a in range(3)
        ]
        for z in starts[0]:
            for y in starts[1]:
                for x in starts[2]:
                    _fill(out, (z, y, x), radius)
    return out


def _fill(out: np.ndarray, centre: tuple[float, float, float], radius: float) -> None:
    squares, where = [], []
    for c, n in zip(centre, out.shape, strict=True):
        low, high = max(0, math.ceil(c - radius - 0.5)), min(n, math.floor(c + radius - 0.5) + 1)
        if low >= high:
            return
        squares.append((np.arange(low, high) + 0.5 - c) ** 2)
        where.append(slice(low, high))
    inside = squares[0][:, None, None] + squares[1][None, :, None] + squares[2][None, None, :] <= radius * radius
    out[tuple(where)] |= inside.view(np.uint8)


def overlapping_spheres(edge: int, radius: float, porosity: float, seed: int = 0) -> np.ndarray:
    """Overlapping equal spheres with uniform centres (a Boolean model); grains are the spheres, uint8 (edge,)*3.

    By porespy, which adds spheres until the porosity is reached.

    Raises:
        UsageError: porespy is not installed.
    """
    try:
        import porespy
    except ImportError as error:
        raise UsageError(
            "overlapping spheres need porespy; try: pip install 'headwater-porous-gan[physics]'"
        ) from error
    porespy.settings.tqdm["disable"] = True
    made = porespy.generators.overlapping_spheres([edge] * 3, r=round(radius), porosity=porosity, seed=seed)
    return np.asarray(~np.asarray(made, bool)).view(np.uint8)


def field(edge: int, sigma: float, porosity: float, seed: int = 0) -> np.ndarray:
    """Truncated Gaussian field: white noise under a periodic Gaussian filter, cut where the porosity is exact.

    Args:
        edge: of the volume.
        sigma: standard deviation of the filter in voxels; the correlation of the field is exp(-r^2 / (4 sigma^2)).
        porosity: share of pore voxels.
        seed: of the noise.

    Returns:
        uint8 (edge, edge, edge), 0 pore and 1 grain.
    """
    noise = np.random.default_rng([seed, 0xF1E1D]).standard_normal((edge,) * 3, dtype=np.float32)
    smooth = scipy.ndimage.gaussian_filter(noise, sigma, mode="wrap").ravel()
    pores = round(porosity * smooth.size)
    cut = np.partition(smooth, pores)[pores]
    return np.asarray(smooth >= cut).view(np.uint8).reshape((edge,) * 3)


def fitted_sigma(s2: np.ndarray, lags: int = 40) -> float:
    """The filter of the truncated Gaussian field whose S2 is nearest to ``s2`` over 1..lags (mean absolute error).

    S2 of the field is the bivariate normal distribution at the threshold under correlation exp(-r^2 / (4 sigma^2)).
    """
    from scipy.optimize import minimize_scalar

    reach = min(lags, len(s2) - 1)
    r = np.arange(1, reach + 1)

    def error(log_sigma: float) -> float:
        return float(np.abs(_field_s2(s2[0], np.exp(-((r / math.exp(log_sigma)) ** 2) / 4)) - s2[1 : reach + 1]).mean())

    grid = np.log(np.geomspace(0.5, 40, 60))
    best = grid[int(np.argmin([error(g) for g in grid]))]
    found = minimize_scalar(error, bounds=(best - 0.1, best + 0.1), method="bounded")
    return float(math.exp(found.x))


def _field_s2(phi: float, correlation: np.ndarray) -> np.ndarray:
    """P(both below the threshold of probability phi) of standard normals with the given correlations.

    phi^2 + (1 / 2 pi) int_0^rho exp(-t^2 / (1 + u)) / sqrt(1 - u^2) du, with u = sin w: the integrand is smooth in w.
    """
    t = math.sqrt(2) * float(scipy.special.erfinv(2 * phi - 1))
    nodes, weights = np.polynomial.legendre.leggauss(48)
    top = np.arcsin(correlation)[:, None]
    w = top * (nodes + 1) / 2
    return np.asarray(phi**2 + (top / 2 * weights * np.exp(-t * t / (1 + np.sin(w)))).sum(1) / (2 * math.pi))


class Medium(PorousTask):
    """An embedded medium; ``provenance`` and the message on the screen say which one it is."""

    @cached_property
    def _volume(self) -> Volume:
        c = self.config
        facts: dict[str, object] = {"medium": c.medium, "what": NAMES[c.medium], "seed": c.seed}
        size: float | None = None
        if c.medium == "bead-pack":
            scale = {"full": 1.0, "half": 0.5, "quarter": 0.25}[c.resolution]
            period = round(BOX * scale)
            spheres = pack(box=BOX if c.edge <= period else math.ceil(c.edge / scale), seed=c.seed)
            phase = voxelise(spheres, c.edge, scale)
            size = VOXEL / scale
            facts |= {
                "radius": spheres.radius * scale, "period": spheres.box * scale, "spheres": len(spheres.centres),
                "periodic": spheres.box * scale == c.edge, "pack_seed": spheres.seed,
            }  # fmt: skip
        elif c.medium == "spheres":
            phase = overlapping_spheres(c.edge, c.radius, c.porosity, c.seed)
            facts["radius"] = round(c.radius)
        else:
            phase = field(c.edge, c.sigma, c.porosity, c.seed)
            facts["sigma"] = c.sigma
        made = Volume(phase, size, provenance=facts)
        print(
            f"{NAMES[c.medium]}: {formats.text(phase.shape)}, porosity {formats.porosity_of(made):.4f}", file=sys.stderr
        )
        return made

    def volume(self) -> Volume:
        return self._volume

    @classmethod
    def check(cls, root: Path) -> list[str]:
        raise UsageError(
            "the embedded media read no data; check your own volume with: headwater data check porous-volume"
        )
