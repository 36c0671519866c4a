"""What vision-rescale registers."""

from typing import Any

from headwater import MethodEntry, OperationEntry, Paper, SamplerEntry, StageEntry, TaskEntry, hookimpl

from headwater_vision_rescale.tasks.entries import KIND, TASKS

API = 1

_OPERATIONS = "headwater_vision_rescale.operations"
_CONFIG = "headwater_vision_rescale.config"


@hookimpl
def headwater_methods() -> list[MethodEntry]:
    return [
        MethodEntry(
            name="vision-rescale",
            summary="Photographs made small so that they can be restored, by one invertible network; images in images",
            paper=Paper(
                title="Enhancing Image Rescaling using Dual Latent Variables in Invertible Neural Network",
                authors=("Min Zhang", "Zhihong Pan", "Xin Zhou", "C.-C. Jay Kuo"),
                venue="ACM Multimedia",
                year=2022,
                url="https://arxiv.org/abs/2207.11844",
            ),
            kinds=(KIND,),
            task="photographs",
            stages=(
                StageEntry(
                    name="dlv",
                    summary="IRN with a downscaling latent (DLV-IRN); trainer.zd_channels=0 is IRN",
                    trainer="headwater_vision_rescale.trainer:DlvTrainer",
                    config=f"{_CONFIG}:DlvConfig",
                    defaults={
                        "fit": {"max_steps": 600, "validate_every": 150, "checkpoint_every": 150},
                        "trainer": {
                            "couplings": 3,
                            "growth": 12,
                            "batch_size": 8,
                            "patch": 48,
                            "lr": 1e-3,
                            "halve_at": [450, 550],
                        },
                    },
                ),
                StageEntry(
                    name="hcflow",
                    summary="the hierarchical conditional flow (HCFlow), rescaling by four",
                    trainer="headwater_vision_rescale.trainer:HCFlowTrainer",
                    config=f"{_CONFIG}:HCFlowConfig",
                    defaults={
                        "fit": {"max_steps": 600, "validate_every": 150, "checkpoint_every": 150},
                        "trainer": {
                            "steps": [3, 3],
                            "conditional_steps": [2, 2],
                            "growth": 12,
                            "width": 16,
                            "features": 16,
                            "feature_growth": 8,
                            "feature_blocks": [1, 0],
                            "batch_size": 8,
                            "patch": 48,
                            "lr": 1e-3,
                            "halve_at": [450, 550],
                        },
                    },
                ),
                StageEntry(
                    name="hide",
                    summary="an image hidden in another (HiNet), with room for a downscaling latent",
                    trainer="headwater_vision_rescale.trainer:HideTrainer",
                    config=f"{_CONFIG}:HideConfig",
                    defaults={
                        "fit": {"max_steps": 600, "validate_every": 150, "checkpoint_every": 150},
                        "trainer": {
                            "couplings": 4,
                            "growth": 12,
                            "batch_size": 4,
                            "patch": 64,
                            "lr": 1e-3,
                            "zu_mode": "zero",
                            "halve_at": [450, 550],
                        },
                    },
                ),
            ),
            samplers=(
                SamplerEntry(
                    name="restore",
                    summary="test images made small, stored with 8 bits and restored; or hidden and revealed",
                    sampler="headwater_vision_rescale.sampler:RestoreSampler",
                    config=f"{_CONFIG}:RestoreConfig",
                ),
            ),
            operations=(
                OperationEntry(
                    name="downscale",
                    summary="image files to small PNG files that remember their size",
                    operation=f"{_OPERATIONS}:Downscale",
                    config=f"{_CONFIG}:ApplyConfig",
                ),
                OperationEntry(
                    name="upscale",
                    summary="small files of downscale back to images",
                    operation=f"{_OPERATIONS}:Upscale",
                    config=f"{_CONFIG}:ApplyConfig",
                ),
                OperationEntry(
                    name="hide",
                    summary="a secret image (secret=PATH) hidden in each cover",
                    operation=f"{_OPERATIONS}:Hide",
                    config=f"{_CONFIG}:HideApplyConfig",
                ),
                OperationEntry(
                    name="reveal",
                    summary="the secrets in files of hide",
                    operation=f"{_OPERATIONS}:Reveal",
                    config=f"{_CONFIG}:ApplyConfig",
                ),
            ),
            presets=_presets(),
            tiny={
                "trainer": {"growth": 3, "batch_size": 2, "patch": 16, "halve_at": [3], "zd_channels": 1},
                "sampler": {"zu_mode": "normal", "zu_std": 0.3},
            },
            converter="headwater_vision_rescale.convert:from_official",
        )
    ]


def _presets() -> dict[str, dict[str, dict[str, Any]]]:
    """The published sizes and schedules, of the first stage."""
    published = {
        "couplings": 8, "growth": 32, "batch_size": 16, "patch": 144, "lr": 2e-4,
        "halve_at": [100_000, 200_000, 300_000, 400_000],
    }  # fmt: skip
    fit = {"max_steps": 500_000, "validate_every": 10_000, "checkpoint_every": 5_000}
    return {
        f"{name}-x{scale}": {"fit": fit, "trainer": {**published, "scale": scale, **extra}}
        for scale in (2, 4)
        for name, extra in (("paper", {}), ("irn", {"zd_channels": 0, "zu_mode": "normal"}))
    }


@hookimpl
def headwater_tasks() -> list[TaskEntry]:
    return list(TASKS)
