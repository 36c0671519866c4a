"""Photographs to learn from and to be tested on."""
