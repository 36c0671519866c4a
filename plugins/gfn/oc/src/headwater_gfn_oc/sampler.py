"""Objects: by the policy of a reward, by converting the flows to all outcomes, or by Markov chains."""

from functools import cached_property
from typing import Any

import torch
from headwater import Sampler, UsageError
from headwater.reporting import Panel, curves, heatmap
from headwater_gfn.all_states import AllStates
from headwater_gfn.environment import Samples
from headwater_gfn.rollout import Behaviour, roll_out
from headwater_gfn.sampler import GFlowNetSampler
from headwater_gfn.table import TableEnvironment, tabulate
from torch import Tensor

from headwater_gfn_oc.conversion import convert, learned_weights, reach_probability, sample_converted, ways_of
from headwater_gfn_oc.metropolis import metropolis
from headwater_gfn_oc.outcomes import Conditioned
from headwater_gfn_oc.trainer import WATCHED, check_space

__all__ = ["MetropolisSampler", "OCSampler"]


class OCSampler(GFlowNetSampler):
    """Samples the policy that was learned for a reward; of a pre-trained run the one converted to the task's reward.

    Under a condition a pre-trained run aims at one outcome instead.
    """

    def setup(self) -> None:
        super().setup()
        if "space" in self.facts:
            check_space(self.task, self.facts)

    @cached_property
    def _converted(self) -> Tensor | None:
        """log P_F^r (n_inner, n_actions) of the task's reward; ``None`` where not all pairs can be gone through."""
        environment = self.environment
        if self.config.conversion == "sampled" or not isinstance(environment, TableEnvironment):
            return None
        table = environment.to("cpu")
        ways = ways_of(table)
        if ways is None:
            return None
        policy: Any = self.modules["conditional"].to("cpu")
        with torch.no_grad():
            weights = learned_weights(ways, policy, normalised=self.facts["normalised"])
        policy.to(self.place.device)
        log_pf = convert(ways, weights, self.config.exponent * table.log_rewards)
        table.to(self.place.device)
        return log_pf

    def block(self, k: int, generator: torch.Generator, condition: Any) -> Samples:
        aim = None if condition is None else condition.outcome
        if aim is not None:
            return self._samples(self._reach(aim, generator))
        if "policy" in self.modules:
            return self._samples(self._walk("policy", generator, self.facts.get("temperature", 1.0)))
        if "conditional" in self.modules:
            return self._samples(self._convert(generator))
        return self._samples(self._walk("explorer", generator, 1.0))

    def _walk(self, name: str, generator: torch.Generator, temperature: float) -> Tensor:
        policy: Any = self.modules[name]
        behaviour = Behaviour(temperature=self.config.temperature * temperature)
        return roll_out(self.environment, policy, self.block_size, generator, behaviour).last

    def _samples(self, x: Tensor) -> Samples:
        log_reward = self.environment.log_reward(x)
        if isinstance(self.environment, TableEnvironment):
            x = self.environment.states[x]
        return Samples(x.cpu(), log_reward.cpu())

    def _reach(self, word: str, generator: torch.Generator) -> Tensor:
        if "conditional" not in self.modules:
            raise UsageError("the condition outcome needs a run that was pre-trained, or fine-tuned from one")
        try:
            y = self.environment.parse([word])
        except ValueError as error:
            raise UsageError(f"the condition outcome = {word!r}: {error}") from error
        y = y.to(self.place.device).repeat(self.block_size, *[1] * (y.ndim - 1))
        conditioned = Conditioned(self.environment, y)
        policy: Any = self.modules["conditional"]
        behaviour = Behaviour(temperature=self.config.temperature)
        return conditioned.split(roll_out(conditioned, policy, self.block_size, generator, behaviour).last)[0]

    def _convert(self, generator: torch.Generator) -> Tensor:
        if self._converted is not None:
            empty = torch.zeros(0)
            behaviour = Behaviour(temperature=self.config.temperature)
            states = AllStates(self.environment, self._converted, empty, empty)  # type: ignore[arg-type] # a table
            cpu = generator
            if generator.device.type != "cpu":
                seed = torch.randint(2**62, (1,), generator=generator, device=generator.device)
                cpu = torch.Generator().manual_seed(int(seed))
            return states.roll_out(self.block_size, cpu, behaviour).last.to(self.place.device)
        if self.config.conversion == "exact":
            raise UsageError("sampler.conversion = 'exact': there are too many outcomes; 'sampled' takes a sample")
        y = self.environment.random_objects(self.config.outcomes, generator)
        log_r = self.config.exponent * self.environment.log_reward(y)
        policy: Any = self.modules["conditional"]
        return sample_converted(
            self.environment, policy, y, log_r, self.block_size, generator, normalised=self.facts["normalised"]
        )

    # The report

    def policies(self) -> dict[str, Any]:
        found: dict[str, Any] = {}
        if "policy" in self.modules:
            found["learned"] = self.modules["policy"]
        if "conditional" in self.modules and self._converted is not None:
            found["converted"] = self._converted
        return found

    def panels(self) -> list[Panel]:
        """How probably each outcome is reached; by the letters of a grid as a map."""
        table = self.environment
        if "conditional" not in self.modules or not isinstance(table, TableEnvironment):
            return []
        n = len(table.states) - table.n_inner
        if n * table.n_inner > WATCHED:
            return []
        policy: Any = self.modules["conditional"]
        with torch.no_grad():
            success = reach_probability(table, policy, torch.arange(n))
        caption = "Exact probability of ending in an outcome when aiming at it, no action ruled out; mean "
        caption += f"{float(success.mean()):.4f}, least {float(success.min()):.4f}."
        if table.n_places == 2 and hasattr(table.of, "landscape"):
            letters = table.letters(torch.arange(n) + table.n_inner)
            rows = torch.zeros(table.n_values, table.n_values, dtype=torch.float64)
            rows[letters[:, 0], letters[:, 1]] = success
            return [
                heatmap(
                    "Reaching each outcome", {"success": rows.tolist()}, x="coordinate 2", y="coordinate 1",
                    caption=caption,
                )
            ]  # fmt: skip
        shares = [i / n for i in range(n)]
        ordered = success.sort().values.tolist()
        return [
            curves("Reaching each outcome", {"success": (shares, ordered)}, x="share of outcomes", y="probability",
                   caption=caption)
        ]  # fmt: skip


class MetropolisSampler(Sampler):
    """The baseline MCMC on the task's reward; it needs nothing of the run but its task."""

    def setup(self) -> None:
        self.environment = tabulate(self.task, device=self.place.device)
        self.task.check_letters()

    def block(self, k: int, generator: torch.Generator, condition: Any) -> Samples:
        config, environment = self.config, self.environment
        x = environment.random_objects(self.block_size, generator)
        x, log_reward = metropolis(environment, x, config.steps, config.exponent, generator)
        if isinstance(environment, TableEnvironment):
            x = environment.states[x]
        return Samples(x.cpu(), log_reward.cpu())
