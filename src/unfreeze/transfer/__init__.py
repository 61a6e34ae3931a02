"""Transfer: a network's head replaced, parts of it frozen, the rest trained, the best kept."""
