"""The command line: parses settings, runs one command, prints its result or error."""
