"""Reactions: their files, the embedded set and its recipe, metrics and pictures."""
