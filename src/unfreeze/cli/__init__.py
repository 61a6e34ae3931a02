"""The command line: settings in, one verb called, one place where errors become a line."""
