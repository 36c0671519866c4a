"""Morphology and flow of segmented volumes: pure functions on arrays."""
