"""Which files are broken, odd or duplicates."""
