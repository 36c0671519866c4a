"""The report's pictures: samples, images and what comes back of them, and a map of the anchors."""

from typing import Any

import numpy as np
import torch
from headwater.reporting import Figure, Images, Panel
from headwater.reporting.panels import COLOURS
from headwater.sampling import Model
from headwater_vision.files import png_bytes
from headwater_vision.grids import enlarged, grid

from headwater_vision_lzn.sampler import as_set
from headwater_vision_lzn.solvers import images_of, noise_of
from headwater_vision_lzn.space import CHUNK, Space

__all__ = ["panels"]

SHOWN = 8
"""Images in a row."""

STEPS = 50
MAPPED = 500
EDGE = 48
"""Pixels that an image has in the report at least."""


def _picture(images: np.ndarray) -> bytes:
    times = max(1, -(-EDGE // images.shape[1]))
    return png_bytes(grid([enlarged(image, times) for image in images], SHOWN))


def panels(task: Any, run: Any) -> list[Panel]:
    """What the report shows of a run of vision-lzn."""
    model = Model(run, device="cpu")
    space = Space(model.modules, model.facts, model.place.device)
    found: list[Panel] = []
    with torch.no_grad():
        if space.decoder is not None:
            made = next(iter(model.sample(3 * SHOWN)))
            found.append(Images("Samples", [_picture(made.images)], caption="Fresh latents, by the run's own sampler."))
        images = task.testing() or task.training()
        if images is not None and "reference" in space.facts:
            if space.decoder is not None:
                found.append(_reconstructions(space, images.images[:SHOWN]))
            found.append(_map(space, images.take(np.arange(min(len(images), MAPPED)))))
    return found


def _tensor(images: np.ndarray) -> torch.Tensor:
    return torch.from_numpy(images).permute(0, 3, 1, 2)


def _reconstructions(space: Space, images: np.ndarray) -> Panel:
    x = _tensor(images)
    anchors = space.anchors(x)
    latents = space.latents(anchors, space.draws(len(x), torch.Generator().manual_seed(0)))
    labels = space.labels_of(latents)[0] if space.points is not None else None
    field = space.field(latents, labels)
    again = images_of(field, noise_of(field, space.pixels(x), steps=STEPS), steps=STEPS)
    fresh = images_of(field, torch.randn(again.shape, generator=torch.Generator().manual_seed(1)), steps=STEPS)
    rows = np.concatenate([images, as_set(again).images, as_set(fresh).images])
    return Images(
        "Images and their latents", [_picture(rows)],
        caption=f"Above: images. Middle: from their latent and their own noise ({STEPS} Euler steps each way). Below: "
        "from the same latent and fresh noise, which shows what the latent says of an image.",
    )  # fmt: skip


def _map(space: Space, images: Any) -> Panel:
    anchors = torch.cat([space.anchors(part) for part in _tensor(images.images).split(CHUNK)])
    centre = anchors.mean(0)
    axes = torch.linalg.svd(anchors - centre, full_matrices=False).Vh[:2]
    flat = ((anchors - centre) @ axes.T).cpu()
    names = images.classes if images.labels is not None else ("image",)
    labels = torch.zeros(len(flat)) if images.labels is None else torch.from_numpy(images.labels)
    data = [
        {
            "type": "scatter",
            "mode": "markers",
            "name": name,
            "x": flat[labels == k, 0].tolist(),
            "y": flat[labels == k, 1].tolist(),
            "marker": {"size": 5, "color": COLOURS[k % len(COLOURS)], "symbol": k // len(COLOURS)},
        }
        for k, name in enumerate(names)
    ]
    layout = {"xaxis": {"title": {"text": "first axis"}}, "yaxis": {"title": {"text": "second axis"}}}
    return Figure(
        "Anchors", {"data": data, "layout": layout},
        caption=f"Anchors of {len(flat)} images on their two principal axes.",
    )  # fmt: skip
