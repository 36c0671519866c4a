"""What vision-lzn registers."""

from headwater import MethodEntry, OperationEntry, Paper, SamplerEntry, StageEntry, TaskEntry, hookimpl

from headwater_vision_lzn.presets import PRESETS
from headwater_vision_lzn.tasks.entries import KIND, TASKS

API = 1


@hookimpl
def headwater_tasks() -> list[TaskEntry]:
    return list(TASKS)


@hookimpl
def headwater_methods() -> list[MethodEntry]:
    return [
        MethodEntry(
            name="vision-lzn",
            summary="Latent Zoning Network: one latent space in which images are generated, embedded and classified",
            paper=Paper(
                title="Latent Zoning Network: A Unified Principle for Generative Modeling, Representation Learning, "
                "and Classification",
                authors=("Zinan Lin", "Enshu Liu", "Xuefei Ning", "Junyi Zhu", "Wenyu Wang", "Sergey Yekhanin"),
                venue="NeurIPS",
                year=2025,
                url="https://arxiv.org/abs/2509.15591",
            ),
            kinds=(KIND,),
            task="digits",
            stages=(
                StageEntry(
                    name="generate",
                    summary="rectified flow with the latent of each image; encoder and decoder",
                    trainer="headwater_vision_lzn.trainer:FlowTrainer",
                    config="headwater_vision_lzn.config:LznConfig",
                    defaults={"fit": {"max_steps": 1500}},
                ),
                StageEntry(
                    name="represent",
                    summary="features without labels, from two views of each image; encoder only",
                    trainer="headwater_vision_lzn.trainer:AlignTrainer",
                    config="headwater_vision_lzn.config:LznConfig",
                    defaults={
                        "trainer": {"encoder": "conv", "solver": "euler", "prior": 0.45, "batch_size": 256},
                        "fit": {"max_steps": 600},
                    },
                ),
                StageEntry(
                    name="joint",
                    summary="images by class and the class of images; encoder, decoder and label anchors",
                    trainer="headwater_vision_lzn.trainer:JointTrainer",
                    config="headwater_vision_lzn.config:LznConfig",
                    defaults={"trainer": {"label_steps": 50}, "fit": {"max_steps": 1500}},
                ),
            ),
            samplers=(
                SamplerEntry(
                    name="images",
                    summary="images of latents from the Gaussian, or from the zone of a label; Euler or Runge-Kutta",
                    sampler="headwater_vision_lzn.sampler:ImageSampler",
                    config="headwater_vision_lzn.config:ImageSamplerConfig",
                    condition="headwater_vision_lzn.config:ImageCondition",
                ),
            ),
            operations=(
                OperationEntry(
                    name="encode",
                    summary="anchor and latent of each image, as NPZ",
                    operation="headwater_vision_lzn.sampler:Encode",
                    config="headwater_vision_lzn.config:EncodeConfig",
                ),
                OperationEntry(
                    name="decode",
                    summary="an image of each latent in an NPZ (latents) or NPY",
                    operation="headwater_vision_lzn.sampler:Decode",
                    config="headwater_vision_lzn.config:DecodeConfig",
                ),
                OperationEntry(
                    name="reconstruct",
                    summary="each image from its latent and initial noise",
                    operation="headwater_vision_lzn.sampler:Reconstruct",
                    config="headwater_vision_lzn.config:ReconstructConfig",
                ),
                OperationEntry(
                    name="embed",
                    summary="features of each image for other models, as NPZ",
                    operation="headwater_vision_lzn.sampler:Embed",
                    config="headwater_vision_lzn.config:EmbedConfig",
                ),
                OperationEntry(
                    name="classify",
                    summary="class and probability of each image, as CSV or JSON lines (stage joint)",
                    operation="headwater_vision_lzn.sampler:Classify",
                    config="headwater_vision_lzn.config:ClassifyConfig",
                ),
            ),
            presets=PRESETS,
            tiny={
                "trainer": {
                    "latent": 16, "width": 8, "narrow": 4, "units": 8, "conv_width": 8, "steps": 4, "label_steps": 6,
                    "batch_size": 8, "bank": 12, "judged": 6, "warm_up": 2,
                },
                "sampler": {"block_size": 4, "steps": 4},
            },
            converter="headwater_vision_lzn.convert:from_official",
        )
    ]  # fmt: skip
