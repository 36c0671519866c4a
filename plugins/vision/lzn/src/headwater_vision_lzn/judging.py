"""What validations measure on test images, with the averaged weights and the anchors of the bank."""

from collections.abc import Mapping
from typing import Any

import torch
from headwater_vision.datasets import ImageSet
from torch import Tensor, nn

from headwater_vision_lzn.solvers import images_of, noise_of
from headwater_vision_lzn.space import CHUNK, Space, network, to_pixels

__all__ = ["features_of", "label_accuracy", "linear_probe", "reconstruction"]

STEPS = 20
"""Euler steps of the image flow in a validation, each way."""

PROBED = 2000
"""Training images that the classifier of a validation is fitted to, at most."""


def _images(images: ImageSet) -> Tensor:
    return torch.from_numpy(images.images).permute(0, 3, 1, 2)


def _draws(n: int, space: Space) -> Tensor:
    return space.draws(n, torch.Generator().manual_seed(0))


def reconstruction(
    modules: Mapping[str, nn.Module], facts: Mapping[str, Any], images: ImageSet, device: torch.device
) -> dict[str, float]:
    """Mean L2 norm, in [-1, 1], of what is lost by encoding, inverting and decoding; mean and deviation of latents."""
    space = Space(modules, facts, device)
    errors, latents = [], []
    for part, prior in zip(_images(images).split(CHUNK), _draws(len(images), space).split(CHUNK), strict=True):
        x = space.pixels(part)
        latent = space.latents(space.anchors(part), prior)
        field = space.field(latent, space.labels_of(latent)[0] if space.points is not None else None)
        again = images_of(field, noise_of(field, x, steps=STEPS), steps=STEPS)
        errors.append((again - x).flatten(1).norm(dim=1))
        latents.append(latent)
    every = torch.cat(latents)
    return {
        "reconstruction_l2": float(torch.cat(errors).mean()),
        "latent_mean": float(every.mean(0).abs().mean()),
        "latent_deviation": float(every.std(0).mean()),
    }


def label_accuracy(
    modules: Mapping[str, nn.Module], facts: Mapping[str, Any], images: ImageSet, device: torch.device
) -> dict[str, float]:
    """Top-1 with equal class weights, without a Gaussian draw (prior 0) and with a whole one (prior 1)."""
    space = Space(modules, facts, device)
    truth = torch.from_numpy(images.labels).to(device)
    anchors = torch.cat([space.anchors(part) for part in _images(images).split(CHUNK)])
    draws = _draws(len(images), space)
    return {
        f"accuracy_prior_{scale}": float(
            (space.labels_of(space.latents(anchors, scale * draws))[0] == truth).float().mean()
        )
        for scale in (0, 1)
    }


def features_of(encoder: Any, images: Tensor, device: torch.device) -> Tensor:
    """The encoder's features (N, F) of images uint8 (N, C, H, W), on the CPU."""
    dtype = next(encoder.parameters()).dtype
    return torch.cat([encoder.features(to_pixels(p.to(device)).to(dtype)).float().cpu() for p in images.split(CHUNK)])


def linear_probe(
    modules: Mapping[str, nn.Module], images: Tensor, labels: Tensor, test: ImageSet, device: torch.device
) -> dict[str, float]:
    """Top-1 of logistic regression on standardised features of training images (2,000 at most)."""
    from sklearn.linear_model import LogisticRegression
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import StandardScaler

    rows = torch.randperm(len(images), generator=torch.Generator().manual_seed(0))[:PROBED]
    encoder = network(modules, "encoder")
    classifier = make_pipeline(StandardScaler(), LogisticRegression(max_iter=2000))
    classifier.fit(features_of(encoder, images[rows], device).numpy(), labels[rows].numpy())
    score = classifier.score(features_of(encoder, _images(test), device).numpy(), test.labels)
    return {"probe_accuracy": float(score)}
