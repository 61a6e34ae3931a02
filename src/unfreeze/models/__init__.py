"""Backbones by name: building, heads, stages, and loading weights from any source."""
