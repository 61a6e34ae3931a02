"""What measured numbers say, and how far they can be believed."""
