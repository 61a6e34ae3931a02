"""Datasets of images: sources, index, checks, decoding, caches, crops and data loading."""
