"""Outcome-conditioned GFlowNets: pre-trained without a reward, adapted to any (Pan et al., ICLR 2024)."""
