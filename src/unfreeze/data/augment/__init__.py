"""Random crops of images, determined by (seed, epoch, image, crop) only."""
