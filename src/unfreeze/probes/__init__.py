"""Evaluation of frozen features: k-NN accuracy and linear probe."""
