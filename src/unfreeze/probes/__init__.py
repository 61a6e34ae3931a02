"""How good are frozen features: k-nearest neighbours and a linear classifier."""
