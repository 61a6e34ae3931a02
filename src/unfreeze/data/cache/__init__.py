"""The cache folder, the chunk store of all caches, and the pixel cache."""
