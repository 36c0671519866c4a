"""Crystals: files, metrics, pictures, embedded data sets."""
