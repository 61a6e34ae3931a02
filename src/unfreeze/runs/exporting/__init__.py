"""What `export` compares its files on, and int8 files."""
