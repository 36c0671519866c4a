"""A normal distribution fitted to points by maximum likelihood, as a plugin of headwater."""
