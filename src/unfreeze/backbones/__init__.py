"""Networks by name: built, cut, given a new head, and loaded with weights from anywhere."""
