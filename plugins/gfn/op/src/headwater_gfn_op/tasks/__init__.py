"""The tasks of gfn-op."""
