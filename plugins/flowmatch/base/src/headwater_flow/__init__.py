"""Flow matching in parts that compose: schedules, paths, couplings, losses, solvers, likelihood, metrics."""
