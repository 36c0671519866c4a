"""Letters (Atanackovic et al., 2025, 5.1): recover the silhouette of a letter, in any rotation, from a blurred one."""

import math
from pathlib import Path

import numpy as np
import torch
from headwater import ConfigError, DataError, seeding
from headwater.errors import near
from pydantic import Field, NonNegativeInt, PositiveInt, model_validator
from torch import Tensor

from headwater_flow_meta.tasks.populations import Data, Population, PopulationConfig, PopulationTask

__all__ = ["Letters", "LettersConfig", "silhouette"]

SIZE = 100
CANVAS = 200


class LettersConfig(PopulationConfig):
    """Which letters, in how many rotations, how noisy, and in which font."""

    letters: str = Field("ABCDEFGHIJKLMNOPQRSTUVWZ", min_length=1, description="those to train on")
    rotations: PositiveInt = Field(10, description="populations of each letter, each rotated at random")
    valid: str = Field("X", description="letters of the validation split")
    test: str = Field("Y", description="letters of the test split")
    font: str = Field(
        "DejaVu Sans", description="a font that matplotlib finds (it brings the DejaVu family), or a font file"
    )
    sharp: float = Field(0.05, ge=0, description="noise of the silhouette, before it is rotated")
    blur: float = Field(0.5, gt=0, description="noise that makes the source of it")
    seed: NonNegativeInt = Field(0, description="seed of noise and rotations")

    @model_validator(mode="after")
    def _apart(self) -> "LettersConfig":
        shared = set(self.letters) & (set(self.test) | set(self.valid))
        if shared:
            raise ValueError(f"{''.join(sorted(shared))!r} is among the letters to train on; take it out of one")
        return self


def font_file(name: str) -> str:
    """The file of a font.

    Raises:
        ConfigError: matplotlib knows none of that name.
    """
    if Path(name).suffix.lower() in (".ttf", ".otf", ".ttc"):
        if not Path(name).is_file():
            raise ConfigError(f"task.font = {name!r}: there is no such file")
        return name
    from matplotlib import font_manager

    try:
        return str(font_manager.findfont(name, fallback_to_default=False))
    except ValueError as error:
        known = {f.name for f in font_manager.fontManager.ttflist}
        raise ConfigError(f"task.font = {name!r} is not installed{near(name, known)}; a font file will do") from error


def silhouette(letter: str, font: str) -> Tensor:
    """The pixels of a glyph as points (n, 2) in the square from -3 to 3, its longer side filling it, upright.

    The glyph is drawn at size 100 on 200 x 200 pixels; every pixel that is not black is a point.

    Raises:
        DataError: the font has no such glyph.
    """
    from PIL import Image, ImageDraw, ImageFont

    canvas = Image.new("L", (CANVAS, CANVAS), 0)
    ImageDraw.Draw(canvas).text((0, 0), letter, fill=255, font=ImageFont.truetype(font, SIZE))
    rows, columns = np.nonzero(np.flipud(np.asarray(canvas)))
    if len(rows) < 2:
        raise DataError(f"the font {font} draws nothing for {letter!r}")
    points = torch.from_numpy(np.stack([columns, rows], 1)).to(torch.float32)
    low, high = points.min(0).values, points.max(0).values
    extent = (high - low).clamp(min=1)
    points = (points - low) / extent * 6 - 3
    ratio = float(extent[0] / extent[1])
    return points * torch.tensor([ratio, 1.0] if ratio < 1 else [1.0, 1 / ratio])


class Letters(PopulationTask):
    """Every population is one letter in one rotation: all its pixels with a little noise, and the same with more.

    Row i of the source is row i of the target, blurred, so the true pairing is known.
    """

    config: LettersConfig

    def load(self) -> Data:
        config = self.config
        font = font_file(config.font)
        splits = {
            split: [self._population(letter, r, font) for letter in letters for r in range(config.rotations)]
            for split, letters in (("train", config.letters), ("valid", config.valid), ("test", config.test))
        }
        return Data(("x", "y"), splits)

    def _population(self, letter: str, rotation: int, font: str) -> Population:
        config = self.config
        generator = seeding.generator(config.seed, ord(letter), rotation)
        points = silhouette(letter, font)
        points = points + config.sharp * torch.randn(points.shape, generator=generator)
        angle = 2 * math.pi * float(torch.rand((), generator=generator))
        sin, cos = math.sin(angle), math.cos(angle)
        target = points @ torch.tensor([[cos, sin], [-sin, cos]])
        source = target + config.blur * torch.randn(points.shape, generator=generator)
        name = f"{letter}-{rotation:02d}"
        return Population(name, source, target, paired=True, where=f"letter {name}")

    def make(self, out: Path) -> None:
        """Write the letters as the task ``population-pairs`` reads them."""
        for split, populations in self.data.splits.items():
            (out / split).mkdir(parents=True, exist_ok=True)
            for p in populations:
                assert p.target is not None
                np.savez(
                    out / split / f"{p.name}.npz", before=p.source.numpy(), after=p.target.numpy(),
                    features=np.array(self.features), paired=np.array(True),
                )  # fmt: skip
