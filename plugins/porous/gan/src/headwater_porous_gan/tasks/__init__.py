"""The segmented volume: files, metrics, pictures, embedded media."""
