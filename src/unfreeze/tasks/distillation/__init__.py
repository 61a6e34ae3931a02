"""Distillation: a network learns the features of another one, without labels."""
