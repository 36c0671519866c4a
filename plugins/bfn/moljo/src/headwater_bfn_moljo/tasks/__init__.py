"""Complexes of pockets and ligands: reading, chemistry, scores and writing."""
