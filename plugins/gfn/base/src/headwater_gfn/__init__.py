"""What the GFlowNet plugins of headwater share: environments, objectives, rollouts, exact diagnostics."""
