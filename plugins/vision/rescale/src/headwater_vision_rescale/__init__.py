"""Invertible image rescaling with dual latent variables: shrink a photograph so that it can be restored."""
