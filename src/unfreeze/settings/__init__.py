"""Every knob of every verb, once: flags, TOML keys, Python keywords and help come from here."""
