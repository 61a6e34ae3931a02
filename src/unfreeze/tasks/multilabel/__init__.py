"""Several labels for an image: which of the classes it has."""
