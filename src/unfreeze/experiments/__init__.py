"""Experiments of many runs: comparisons of initial weights, cross-validation and repeats."""
