"""Images: where they lie, which can be used, how they are read, cut and served."""
