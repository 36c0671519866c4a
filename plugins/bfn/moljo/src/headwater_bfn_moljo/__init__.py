"""MolJO: gradient-guided Bayesian flow for structure-based molecule optimisation."""
