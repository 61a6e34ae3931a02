"""Features of frozen layers, computed once and trained on: policy, builder, store, loader."""
