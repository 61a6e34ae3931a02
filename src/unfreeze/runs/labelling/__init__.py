"""What `audit` and `suggest` compute: wrong labels, and images to label."""
