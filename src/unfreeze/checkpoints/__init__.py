"""Weight files: safe reading, key matching, atomic writing."""
