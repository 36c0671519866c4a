"""Molecules built from fragments: the environment, its library, rewards, policy network, metrics and files."""

from headwater_gfn.tasks.fragments.environment import Fragments, FragmentsConfig

__all__ = ["Fragments", "FragmentsConfig"]
