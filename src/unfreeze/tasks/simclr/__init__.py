"""SimCLR: two views of an image are alike, and unlike those of all other images of the batch."""
