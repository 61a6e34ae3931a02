"""Files that hold weights: read safely, matched by name, written whole."""
