"""Layer freezing: what is frozen, when it is unfrozen, where the network can be split."""
