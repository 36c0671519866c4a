"""Forward-looking GFlowNets: local credit and incomplete trajectories (Pan et al., ICML 2023)."""
