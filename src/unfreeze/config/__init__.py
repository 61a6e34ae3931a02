"""The settings of every command: flags, TOML keys, Python keywords and help come from here."""
