"""What porous-gan registers."""

from typing import Any

from headwater import MethodEntry, Paper, SamplerEntry, StageEntry, TaskEntry, hookimpl

from headwater_porous_gan.tasks.entries import KIND, TASKS

API = 1

PUBLISHED: dict[str, Any] = {
    "order": "official", "windows": "published", "decay_steps": 0, "dropout_of": "voxels", "judged": "paper",
}  # fmt: skip
SAMPLED: dict[str, Any] = {"shape": [200, 200, 200], "margin": "paper", "postprocess": "paper"}


@hookimpl
def headwater_tasks() -> list[TaskEntry]:
    return list(TASKS)


@hookimpl
def headwater_methods() -> list[MethodEntry]:
    return [
        MethodEntry(
            name="porous-gan",
            summary="3-D generative adversarial network of one scanned volume, and new volumes of any size",
            paper=Paper(
                title="Reconstruction of three-dimensional porous media using generative adversarial neural networks",
                authors=("Lukas Mosser", "Olivier Dubrule", "Martin J. Blunt"),
                venue="Physical Review E 96, 043309",
                year=2017,
                url="https://arxiv.org/abs/1704.03225",
            ),
            kinds=(KIND,),
            task="bead-pack",
            stages=(
                StageEntry(
                    name="train",
                    summary="generator and discriminator; the best weights by S2, surface and Euler number are kept",
                    trainer="headwater_porous_gan.trainer:PorousTrainer",
                    config="headwater_porous_gan.config:PorousConfig",
                    defaults={
                        "fit": {"max_steps": 4000, "validate_every": 200, "ema": 0.998, "checkpoint_every": 500},
                    },
                ),
            ),
            samplers=(
                SamplerEntry(
                    name="volume",
                    summary="volumes of any shape, tile by tile; goes on beside finished ones; periodic on request",
                    sampler="headwater_porous_gan.sampler:PorousSampler",
                    config="headwater_porous_gan.config:PorousSamplerConfig",
                ),
            ),
            presets={
                "berea": {
                    "trainer": {
                        **PUBLISHED,
                        "side": 64,
                        "nz": 512,
                        "ngf": 64,
                        "ndf": 16,
                        "variant": "smooth",
                        "label": 0.9,
                        "batch_size": 64,
                        "lr": 1e-5,
                        "lr_discriminator": 1e-5,
                        "stride": 16,
                        "select_every": 835,
                    },
                    "sampler": SAMPLED,
                    "fit": {"max_steps": 30000, "validate_every": 835},
                },
                "ketton": {
                    "trainer": {
                        **PUBLISHED,
                        "side": 64,
                        "nz": 100,
                        "ngf": 64,
                        "ndf": 16,
                        "variant": "noise",
                        "noise": 0.1,
                        "schedule": "official64",
                        "dropout": 0.2,
                        "batch_size": 64,
                        "lr": 2e-4,
                        "lr_discriminator": 2e-4,
                        "stride": 16,
                        "epochs": 300,
                        "epoch_steps": 34,
                        "select_every": 170,
                    },
                    "sampler": SAMPLED,
                    "fit": {"max_steps": 10200, "validate_every": 170},
                },
                "beadpack": {
                    "trainer": {
                        **PUBLISHED,
                        "side": 128,
                        "nz": 100,
                        "ngf": 64,
                        "ndf": 8,
                        "variant": "noise",
                        "noise": 0.1,
                        "schedule": "official128",
                        "dropout": 0.2,
                        "dropout_of": "channels",
                        "batch_size": 16,
                        "lr": 2e-4,
                        "lr_discriminator": 2e-4,
                        "stride": 32,
                        "epochs": 300,
                        "epoch_steps": 108,
                        "select_every": 540,
                    },
                    "sampler": SAMPLED,
                    "fit": {"max_steps": 32400, "validate_every": 540},
                },
            },
            tiny={
                "task": {"edge": 32, "resolution": "half", "permeability": False, "lags": 10},
                "trainer": {
                    "side": 16,
                    "nz": 4,
                    "ngf": 4,
                    "ndf": 2,
                    "batch_size": 2,
                    "select_every": 2,
                    "judged_cells": 5,
                },
                "sampler": {"shape": [24, 20, 28], "tile": 16},
                "fit": {"validate_every": 2},
            },
            converter="headwater_porous_gan.convert:from_official",
        )
    ]
