"""Meta flow matching: a velocity field conditioned on an embedding of the whole population that it moves."""
