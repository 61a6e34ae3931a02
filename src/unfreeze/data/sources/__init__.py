"""Image sources with one interface: folders, archives, tables and built-in datasets."""
