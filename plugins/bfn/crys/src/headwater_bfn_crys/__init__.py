"""CrysBFN: crystals by periodic Bayesian flow (Wu et al., ICLR 2025)."""
