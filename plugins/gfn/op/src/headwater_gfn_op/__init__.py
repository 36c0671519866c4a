"""Order-preserving GFlowNets: samplers of the best, and of Pareto fronts, learned from an order alone."""
