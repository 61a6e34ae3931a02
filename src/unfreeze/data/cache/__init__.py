"""The pixel cache: policy, store, eviction."""
