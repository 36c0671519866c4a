"""Transition states by conditional flow matching (TS-GEN and MolGEN; Tuo, Chen and Li, 2025)."""
