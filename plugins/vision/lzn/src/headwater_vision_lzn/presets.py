"""The published settings. Each belongs to a stage: generate, represent (imagenet) or joint (cifar10-joint)."""

from typing import Any

__all__ = ["PRESETS"]

COMMON: dict[str, Any] = {"warm_up": 5000, "clip": 1.0, "prior": 1.0, "solver": "dpm", "steps": 20}

CIFAR: dict[str, Any] = {
    **COMMON,
    "size": 32,
    "channels": 3,
    "latent": 200,
    "width": 128,
    "multipliers": [1, 2, 2, 2],
    "blocks": 4,
    "attention": [16],
    "dropout": 0.15,
    "batch_size": 2000,
    "lr_encoder": 2.5e-5,
    "lr_decoder": 1e-3,
    "ema": 0.999999,
}

LARGE: dict[str, Any] = {
    **COMMON,
    "size": 256,
    "channels": 3,
    "latent": 200,
    "width": 128,
    "multipliers": [1, 1, 2, 2, 2, 2, 2],
    "blocks": 2,
    "attention": [16],
    "style": "fir",
    "readout": [64, 32, 16, 8, 4],
    "batch_size": 256,
    "lr_encoder": 2e-6,
    "lr_decoder": 2e-4,
}


def _large(max_steps: int, ema: float, **trainer: Any) -> dict[str, dict[str, Any]]:
    return {"trainer": {**LARGE, "ema": ema, **trainer}, "sampler": {"method": "rk45"}, "fit": {"max_steps": max_steps}}


PRESETS: dict[str, dict[str, dict[str, Any]]] = {
    "cifar10": {"trainer": CIFAR, "sampler": {"method": "rk45"}, "fit": {"max_steps": 50_000}},
    "afhq-cat": _large(60_000, 0.999999),
    "celeba-hq": _large(350_000, 0.9999, lr_encoder=4e-6),
    "lsun-bedroom": _large(2_050_000, 0.99999),
    "imagenet": {
        "trainer": {
            "size": 224,
            "channels": 3,
            "latent": 256,
            "encoder": "resnet50",
            "solver": "euler",
            "steps": 20,
            "prior": 0.45,
            "cut_off": 0.2,
            "batch_size": 8192,
            "lr_encoder": 8e-4,
            "warm_up": 5000,
            "ema": 0.9999,
            "augment": "photographs",
        },
        "fit": {"max_steps": 5_000_000},
    },
    "cifar10-joint": {
        "trainer": {
            **CIFAR,
            "lr_encoder": 5e-5,
            "lr_decoder": 2e-3,
            "lr_labels": 1e-4,
            "label_steps": 100,
            "decoder_steps": 60_000,
        },
        "sampler": {"method": "rk45"},
        "fit": {"max_steps": 200_000},
    },
}
