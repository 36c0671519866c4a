"""The three stages: images out of latents, representation from two views, and images with classes."""

from collections.abc import Mapping
from contextlib import AbstractContextManager
from typing import Any

import numpy as np
import torch
import torch.distributed as dist
from headwater import DataError, Trainer, UsageError
from torch import Tensor, nn

from headwater_vision_lzn import augment
from headwater_vision_lzn.averages import Average
from headwater_vision_lzn.config import LznConfig
from headwater_vision_lzn.flow import forward_flow, nearest, reverse_flow
from headwater_vision_lzn.judging import label_accuracy, linear_probe, reconstruction
from headwater_vision_lzn.networks import Anchors, ConvEncoder, Decoder, Encoder, ResNet50
from headwater_vision_lzn.objective import alignment_losses, class_log_weights, flow_loss, straight_line
from headwater_vision_lzn.solvers import IMAGE_START

__all__ = ["AlignTrainer", "FlowTrainer", "JointTrainer", "gather"]


class _Gather(torch.autograd.Function):
    """All ranks' rows, in order of rank; the gradient of a row is the sum over what all ranks made of it."""

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        ctx.rows = len(x)
        parts = [torch.empty_like(x) for _ in range(dist.get_world_size())]
        dist.all_gather(parts, x.contiguous())
        return torch.cat(parts)

    @staticmethod
    def backward(ctx: Any, g: Tensor) -> Tensor:
        g = g.contiguous()
        dist.all_reduce(g)
        return g.split(ctx.rows)[dist.get_rank()]


def gather(x: Tensor, world: int) -> Tensor:
    """The rows of all ``world`` processes, each of which has as many: anchors are those of the joint batch."""
    return x if world == 1 else _Gather.apply(x)


class LznTrainer(Trainer):
    """What the stages share: data, networks, one optimiser for all, and the moving averages."""

    averaged = ()  # by the core's constant decay none: the published one rises
    config: LznConfig
    parts: tuple[str, ...]
    """The modules that are trained."""

    @classmethod
    def facts(cls, config: LznConfig, task: Any) -> dict[str, Any]:
        found: dict[str, Any] = {
            "flow": {"solver": config.solver, "steps": config.steps, "label_steps": config.label_steps}
        }
        data = task.training()
        if data is None:
            return found
        for name, here in (("size", data.images.shape[1]), ("channels", data.images.shape[3])):
            wanted = getattr(config, name)
            if wanted is not None and wanted != here:
                raise UsageError(f"trainer.{name} = {wanted}, but the images have {here}; say task.{name} = {wanted}")
        rows = torch.randperm(len(data), generator=torch.Generator().manual_seed(0))[: config.bank].sort().values
        found |= {
            "size": int(data.images.shape[1]), "channels": int(data.images.shape[3]), "classes": list(data.classes),
            "reference": torch.from_numpy(data.images[rows.numpy()]).permute(0, 3, 1, 2).contiguous(),
        }  # fmt: skip
        if data.labels is not None:
            found["reference_labels"] = torch.from_numpy(data.labels[rows.numpy()])
        return found

    @classmethod
    def build(cls, config: LznConfig, task: Any, facts: Mapping[str, Any]) -> dict[str, nn.Module]:
        size, channels = config.size or facts.get("size"), config.channels or facts.get("channels")
        sized = "decoder" in cls.parts or config.encoder == "ncsnpp"
        if channels is None or (size is None and sized):
            raise UsageError("task.path is needed: the images to train on (or trainer.size and trainer.channels)")
        made: dict[str, nn.Module] = {}
        geometry: dict[str, Any] = {
            "size": size, "channels": channels, "latent": config.latent, "width": config.width,
            "multipliers": config.multipliers, "blocks": config.blocks, "attention": config.attention,
            "style": config.style, "dropout": config.dropout,
        }  # fmt: skip
        classes = (config.classes or len(facts.get("classes", ()))) if "labels" in cls.parts else 0
        if "labels" in cls.parts and not classes:
            raise UsageError("the stage joint needs labels: class folders, or an NPZ with an array 'labels'")
        if size is not None and sized:
            try:
                config.check_size(size)
            except ValueError as error:
                raise UsageError(f"{error}; say task.size, or other trainer.multipliers") from error
        if config.encoder == "ncsnpp":
            made["encoder"] = Encoder(**geometry, narrow=config.narrow, units=config.units, readout=config.readout)
        elif config.encoder == "conv":
            made["encoder"] = ConvEncoder(channels, config.latent, config.conv_width)
        else:
            made["encoder"] = ResNet50(channels, config.latent, config.resnet_width, config.head_layers)
        if "decoder" in cls.parts:
            made["decoder"] = Decoder(classes=classes, **geometry)
        if "labels" in cls.parts:
            made["labels"] = Anchors(classes, config.latent)
        return made | {f"{name}_average": Average(made[name]) for name in cls.parts}

    def setup(self) -> None:
        config = self.config
        data = self.task.training()
        if data is None:
            raise UsageError("task.path is needed: the images to train on")
        if len(data) < config.batch_size * self.place.world:
            raise DataError(
                f"{len(data)} images are too few for batches of {config.batch_size * self.place.world}: an image may "
                "be in a batch once only; a smaller trainer.batch_size would do"
            )
        self.images = torch.from_numpy(data.images).permute(0, 3, 1, 2).contiguous()
        self.labels = None if data.labels is None else torch.from_numpy(data.labels)
        if "labels" in self.parts:
            if self.labels is None:
                raise DataError("the images have no labels, and the stage joint needs them")
            if config.classes is not None and int(self.labels.max()) >= config.classes:
                raise DataError(f"the labels go up to {int(self.labels.max())}; trainer.classes = {config.classes}")
        self.networks: dict[str, Any] = {name: self.modules[name] for name in self.parts}
        self.shadows: dict[str, Any] = {name: self.modules[f"{name}_average"] for name in self.parts}
        for name, shadow in self.shadows.items():
            shadow.restart(self.networks[name])
        rates = {"encoder": config.lr_encoder, "decoder": config.lr_decoder, "labels": config.lr_labels}
        groups = [{"params": list(self.networks[n].parameters()), "lr": rates[n]} for n in self.parts]
        adam = torch.optim.Adam(groups, fused=True)
        self.optimisers = {"all": adam}
        if config.warm_up:
            self.schedulers = {"all": torch.optim.lr_scheduler.LinearLR(adam, 1 / config.warm_up, 1, config.warm_up)}
        self.clip_norm = config.clip

    # Batches

    def rows(self, generator: torch.Generator) -> Tensor:
        """Images of this rank's share, each at most once: two alike in a batch would share a zone."""
        mine = torch.arange(self.place.rank, len(self.images), self.place.world)
        return mine[torch.randperm(len(mine), generator=generator)[: self.config.batch_size]]

    def draw(self, k: int, generator: torch.Generator) -> dict[str, Any]:
        rows = self.rows(generator)
        x = self.images[rows]
        if self.task.flip:
            mirrored = torch.rand(len(x), generator=generator) < 0.5
            x = torch.where(mirrored[:, None, None, None], x.flip(3), x)
        n = len(x)
        batch = {
            "k": k, "x": x, "prior": torch.randn(n, self.config.latent, generator=generator),
            "noise": torch.randn(x.shape, generator=generator),
            "t": torch.rand(n, generator=generator) * (1 - IMAGE_START) + IMAGE_START,
        }  # fmt: skip
        if "labels" in self.parts and self.labels is not None:
            batch["labels"] = self.labels[rows]
        return batch

    # Steps

    @property
    def dtype(self) -> torch.dtype:
        """That of the weights."""
        return next(self.networks["encoder"].parameters()).dtype

    def exactly(self) -> AbstractContextManager[Any]:
        """The latent flow is no place for 16 bits."""
        return torch.autocast(self.place.device.type, enabled=False)

    def pixels(self, x: Tensor) -> Tensor:
        """Bytes as numbers in [-1, 1]."""
        return x.to(self.dtype) / 127.5 - 1

    def latents(self, anchors: Tensor, prior: Tensor) -> Tensor:
        """The latents of this rank's anchors among those of the joint batch."""
        with self.exactly():
            anchors = anchors.to(self.dtype)
            everyone = gather(anchors, self.place.world)
            draws = self.config.prior * prior.to(self.dtype)
            return forward_flow(everyone, anchors, draws, solver=self.config.solver, steps=self.config.steps)

    def learn(self, loss: Tensor, batch: dict[str, Any]) -> None:
        """Update the weights and their averages."""
        self.update(loss, weight=len(batch["prior"]))
        for name, shadow in self.shadows.items():
            shadow.update(self.networks[name], batch["k"] + 1, self.config.ema)

    def image_loss(self, batch: dict[str, Any], x: Tensor, latent: Tensor) -> Tensor:
        """The regression of rectified flow under the latents."""
        noise, t = batch["noise"].to(self.dtype), batch["t"].to(self.dtype)
        predicted = self.networks["decoder"](straight_line(x, noise, t), t, latent, batch.get("labels"))
        return flow_loss(predicted.float() if self.dtype == torch.float32 else predicted, x, noise)

    def judged(self) -> Any:
        """The first test images, as many as are looked at; ``None`` where there are none."""
        test = self.task.testing()
        return None if test is None else test.take(np.arange(min(len(test), self.config.judged)))


class FlowTrainer(LznTrainer):
    """Rectified flow whose network is given the latent of the image it makes; nothing else asks for good latents."""

    parts = ("encoder", "decoder")

    def step(self, batch: dict[str, Any]) -> dict[str, Tensor]:
        x = self.pixels(batch["x"])
        latent = self.latents(self.networks["encoder"](x), batch["prior"])
        loss = self.image_loss(batch, x, latent)
        self.learn(loss, batch)
        return {"loss": loss.detach(), "latent_deviation": latent.detach().std()}

    def validate(self) -> dict[str, float]:
        """How far a test image is from what comes back of its latent and noise."""
        test = self.judged()
        return {} if test is None else reconstruction(self.modules, self.facts_found, test, self.place.device)


class AlignTrainer(LznTrainer):
    """Two views of each image: the latent of one has to flow back to the anchor of the other."""

    parts = ("encoder",)

    def draw(self, k: int, generator: torch.Generator) -> dict[str, Any]:
        x = self.images[self.rows(generator)].float() / 127.5 - 1
        make = augment.shapes if self.config.augment == "shapes" else augment.photographs
        first, second = make(x, generator), make(x, generator)
        prior = torch.randn(len(x), self.config.latent, generator=generator)
        return {"k": k, "first": first, "second": second, "prior": prior}

    def step(self, batch: dict[str, Any]) -> dict[str, Tensor]:
        config, encoder = self.config, self.networks["encoder"]
        first, second = (encoder(batch[name].to(self.dtype)).to(self.dtype) for name in ("first", "second"))
        latent = self.latents(first, batch["prior"])
        with self.exactly():
            n = len(latent)
            everyone = gather(second, self.place.world)
            own = torch.arange(n, device=latent.device) + self.place.rank * n
            back = reverse_flow(latent, everyone, solver=config.solver, steps=config.steps, targets=own)
            assert back.log_targets is not None
            loss, _ = alignment_losses(back.log_targets, config.cut_off)
        self.learn(loss, batch)
        with torch.no_grad():
            reached = everyone[nearest(back.final, everyone)]
            off = (back.final - reached).norm(dim=1) / reached.norm(dim=1)
        return {"loss": loss.detach(), "assignment": back.log_targets[-1].detach().exp().mean(), "distance": off.mean()}

    def validate(self) -> dict[str, float]:
        """How well a linear classifier does on the features, where the images have labels."""
        test = self.judged()
        if test is None or test.labels is None or self.labels is None:
            return {}
        return linear_probe(self.modules, self.images, self.labels, test, self.place.device)


class JointTrainer(LznTrainer):
    """Images with classes: the latent is decoded under its label, and has to flow back to the label's anchor."""

    parts = ("encoder", "decoder", "labels")

    def step(self, batch: dict[str, Any]) -> dict[str, Tensor]:
        config, labels = self.config, batch["labels"]
        frozen = config.decoder_steps is not None and batch["k"] >= config.decoder_steps
        self.networks["decoder"].requires_grad_(not frozen)
        x = self.pixels(batch["x"])
        latent = self.latents(self.networks["encoder"](x), batch["prior"])
        loss_images = self.image_loss(batch, x, latent)
        with self.exactly():
            points = self.networks["labels"].points
            weights = class_log_weights(gather(labels, self.place.world), len(points))
            back = reverse_flow(
                latent, points, solver="euler", steps=config.label_steps, log_weights=weights, targets=labels
            )
            assert back.log_targets is not None
            _, loss_labels = alignment_losses(back.log_targets, config.cut_off)
        self.learn(loss_images + config.label_weight * loss_labels, batch)
        hits = nearest(back.final.detach(), points.detach()) == labels
        return {"loss_images": loss_images.detach(), "loss_labels": loss_labels.detach(), "hits": hits.float().mean()}

    def validate(self) -> dict[str, float]:
        """The share of test images that flow to the anchor of their label, and the error of the images."""
        test = self.judged()
        if test is None:
            return {}
        where = (self.modules, self.facts_found, test, self.place.device)
        return {**label_accuracy(*where), **reconstruction(*where)}
