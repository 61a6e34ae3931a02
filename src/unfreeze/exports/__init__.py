"""A run's model in other tools' formats; each is read back with that tool before it counts."""
