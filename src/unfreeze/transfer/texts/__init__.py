"""Starts of models of texts: a head on a pretrained encoder, and TF-IDF."""
