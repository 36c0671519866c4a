"""Points in a corridor, as a task of the kind that headwater-gauss defines."""
