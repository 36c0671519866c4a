"""Bayesian flow networks: flows, schedules, losses and samplers (Graves et al. 2023)."""
