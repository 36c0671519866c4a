"""The three stages: DLV-IRN (IRN without the latent), HCFlow, and hiding."""

from collections.abc import Mapping
from functools import cached_property
from typing import Any

import numpy as np
import torch
from headwater import Trainer
from torch import Tensor, nn
from torch.optim import Adam
from torch.optim.lr_scheduler import MultiStepLR

from headwater_vision_rescale.config import InferenceConfig
from headwater_vision_rescale.flow import orthonormal_haar, quantise, to_unit
from headwater_vision_rescale.hcflow import HCFlow
from headwater_vision_rescale.inference import Runner
from headwater_vision_rescale.networks import HidingNet, Rescaler, RescalingNet
from headwater_vision_rescale.objective import charbonnier, hcflow_loss, latent_energy, summed_squares
from headwater_vision_rescale.patches import PatchPool
from headwater_vision_rescale.tasks.scoring import bicubic_bytes, restored_scores, small_scores

__all__ = ["DlvTrainer", "HCFlowTrainer", "HideTrainer"]

Batch = dict[str, Tensor]
JUDGED = 256
"""Edge of the piece of every test image on which training is judged."""


class PatchTrainer(Trainer):
    """Patches in, Adam with a rate that is halved at given steps."""

    eps = 1e-8

    @property
    def network(self) -> nn.Module:
        """The one network that is trained."""
        return next(iter(self.modules.values()))

    def setup(self) -> None:
        c = self.config
        parameters = [p for p in self.network.parameters() if p.requires_grad]
        adam = Adam(parameters, c.lr, betas=c.betas, eps=self.eps, weight_decay=c.weight_decay, foreach=True)
        self.optimisers = {"adam": adam}
        self.schedulers = {"adam": MultiStepLR(adam, c.halve_at, 0.5)}
        self.clip_norm = c.clip_norm
        self.network.train()

    @cached_property
    def pool(self) -> PatchPool:
        """The training images, read at the first draw."""
        return PatchPool(self.task.training_images(self.config.patch), self.scale, self.config.patch)

    def _unit(self, batch: Batch) -> Batch:
        """The batch as the network takes it: images in [0, 1], all in the type of its weights."""
        dtype = next(self.network.parameters()).dtype
        return {name: to_unit(values, dtype) for name, values in batch.items()}

    @property
    def scale(self) -> int:
        return int(getattr(self.network, "scale"))  # noqa: B009 - the type of a module's attribute is unknown

    def _noise(self, n: int, channels: int, edge: int, generator: torch.Generator) -> Tensor:
        return torch.randn(n, channels, edge, edge, generator=generator)

    def _judged(self) -> list[np.ndarray]:
        """The middle of every test image."""
        found = []
        for photograph in self.task.tested:
            image = photograph.image()
            top, left = (max(0, (n - JUDGED) // 2) for n in image.shape[:2])
            piece = image[top : top + JUDGED, left : left + JUDGED]
            height, width = (n - n % 8 for n in piece.shape[:2])
            if min(height, width) >= 32:
                found.append(piece[:height, :width])
        return found

    def _runner(self) -> Runner:
        name = next(iter(self.modules))
        network: Any = self.averages.get(name, self.modules[name])
        return Runner(network, InferenceConfig.model_validate({}), self.place.device)


class RescalingTrainer(PatchTrainer):
    """What the two stages for rescaling have in common."""

    def draw(self, k: int, generator: torch.Generator) -> Batch:
        c, net = self.config, self.network
        assert isinstance(net, Rescaler)
        x, guide = self.pool.draw(c.batch_size, generator)
        batch = {"x": x, "guide": guide}
        if self._draws_zu:
            batch["z"] = self._noise(len(x), net.latent_channels, c.patch // net.scale, generator)
        if self._draws_zd and net.zd_channels:
            batch["z_d"] = c.zd_std * self._noise(len(x), net.zd_channels, c.patch, generator)
        return batch

    _draws_zu = True
    _draws_zd = False

    def validate(self) -> dict[str, float]:
        """PSNR of Y of restored and small pieces of the test images, latents zero."""
        runner, scale = self._runner(), self.scale
        runner.network.eval()
        generator = torch.Generator(self.place.device)
        found = []
        for image in self._judged():
            small = runner.downscale(image, generator)
            restored = runner.upscale(small, None, generator)
            found.append(restored_scores(image, restored, scale) | small_scores(bicubic_bytes(image, 1 / scale), small))
        self.network.train()
        kept = ("psnr_y", "ssim_y", "lr_psnr_y")
        return {k: float(np.mean([f[k] for f in found])) for k in kept} if found else {}


class DlvTrainer(RescalingTrainer):
    """IRN's losses on (y, z_u) = f([x; z_d]) and x' = f^-1([Q(y); z_u'])."""

    @classmethod
    def build(cls, config: Any, task: Any, facts: Mapping[str, Any]) -> dict[str, nn.Module]:
        net = RescalingNet(
            config.scale, config.couplings, growth=config.growth, zd_channels=config.zd_channels,
            zd_entry=config.zd_entry,
        )  # fmt: skip
        net.recompute = config.recompute
        return {"rescaler": net}

    @property
    def _draws_zu(self) -> bool:  # type: ignore[override]
        return bool(self.config.zu_mode == "normal")

    @property
    def _draws_zd(self) -> bool:  # type: ignore[override]
        return bool(self.config.zd_mode == "normal")

    def step(self, batch: Batch) -> dict[str, Tensor]:
        c, net, batch = self.config, self.network, self._unit(batch)
        assert isinstance(net, RescalingNet)
        x, guide = batch["x"], batch["guide"]
        out = net(x, batch.get("z_d"))
        y, z = out[:, :3], out[:, 3:]
        fit, energy = summed_squares(y, guide), latent_energy(z)
        rec = charbonnier(x, net.restore(quantise(y), batch.get("z")))
        weight = c.scale**2 if c.lambda_fit is None else c.lambda_fit
        loss = weight * fit + c.lambda_z * energy + c.lambda_rec * rec
        self.update(loss, weight=len(x))
        return {"loss": loss.detach(), "fit": fit.detach(), "latent": energy.detach(), "reconstruction": rec.detach()}


class HCFlowTrainer(RescalingTrainer):
    """HCFlow's losses; the first step sets the activation norms from its batch."""

    @classmethod
    def build(cls, config: Any, task: Any, facts: Mapping[str, Any]) -> dict[str, nn.Module]:
        names = ("growth", "width", "features", "feature_growth", "feature_blocks", "zd_channels")
        sizes = {name: getattr(config, name) for name in names}
        return {"rescaler": HCFlow(config.steps, config.conditional_steps, **sizes)}

    def setup(self) -> None:
        super().setup()
        limit = self.config.clip_value
        if limit is not None:
            for parameter in self.network.parameters():
                parameter.register_post_accumulate_grad_hook(lambda p: _clip(p, limit))

    def step(self, batch: Batch) -> dict[str, Tensor]:
        net, batch = self.network, self._unit(batch)
        assert isinstance(net, HCFlow)
        x, guide = batch["x"], batch["guide"]
        y, z = net(x)
        y = y.clamp(0, 1)
        restored = net.restore(quantise(y), batch["z"]).clamp(0, 1)
        losses = hcflow_loss(y, guide, z, restored, x)
        loss = sum(losses.values(), torch.zeros((), device=x.device))
        self.update(loss, weight=len(x))
        return {"loss": loss.detach(), **{k.removeprefix("loss_"): v.detach() for k, v in losses.items()}}


def _clip(parameter: Tensor, limit: float) -> None:
    if parameter.grad is not None:
        parameter.grad.clamp_(-limit, limit)


class HideTrainer(PatchTrainer):
    """HiNet's losses: sums of squares of the secret, the stego image, and its lowest band."""

    @classmethod
    def build(cls, config: Any, task: Any, facts: Mapping[str, Any]) -> dict[str, nn.Module]:
        net = HidingNet(config.couplings, growth=config.growth, zd_channels=config.zd_channels)
        net.recompute = config.recompute
        return {"hider": net}

    def setup(self) -> None:
        self.eps = self.config.eps
        super().setup()

    def draw(self, k: int, generator: torch.Generator) -> Batch:
        c, net = self.config, self.network
        assert isinstance(net, HidingNet)
        x, _ = self.pool.draw(2 * c.batch_size, generator)
        batch = {"cover": x[: c.batch_size], "secret": x[c.batch_size :]}
        if c.zu_mode == "normal":
            batch["z"] = self._noise(c.batch_size, net.latent_channels, c.patch // 2, generator)
        return batch

    def step(self, batch: Batch) -> dict[str, Tensor]:
        c, net, batch = self.config, self.network, self._unit(batch)
        assert isinstance(net, HidingNet)
        cover, secret = batch["cover"], batch["secret"]
        n = len(cover)
        stego = net.hide(cover, secret)
        revealed = net.reveal(quantise(stego) if c.quantised else stego, batch.get("z"))
        rec, guide = n * summed_squares(revealed, secret), n * summed_squares(stego, cover)
        low = n * summed_squares(orthonormal_haar(stego)[:, :3], orthonormal_haar(cover)[:, :3])
        loss = c.lambda_rec * rec + c.lambda_guide * guide + c.lambda_low * low
        self.update(loss, weight=n)
        return {"loss": loss.detach(), "secret": rec.detach(), "stego": guide.detach(), "low": low.detach()}

    def validate(self) -> dict[str, float]:
        """PSNR of Y of stego images and revealed secrets, pieces of the test images in turn, latents zero."""
        runner = self._runner()
        runner.network.eval()
        generator = torch.Generator(self.place.device)
        pieces, found = self._judged(), []
        for cover, secret in zip(pieces, [*pieces[1:], *pieces[:1]], strict=True):
            height, width = (min(a, b) for a, b in zip(cover.shape[:2], secret.shape[:2], strict=True))
            cover, secret = cover[:height, :width], secret[:height, :width]
            stego = runner.hide(cover, secret)
            revealed = runner.reveal(stego, None, generator)
            found.append([restored_scores(a, b, 0)["psnr_y"] for a, b in ((cover, stego), (secret, revealed))])
        self.network.train()
        if not found:
            return {}
        stego_psnr, secret_psnr = np.mean(found, 0)
        return {"stego_psnr_y": float(stego_psnr), "secret_psnr_y": float(secret_psnr)}
