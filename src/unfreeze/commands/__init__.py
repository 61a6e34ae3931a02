"""The commands, each with its Python function and its `run_COMMAND(settings, console)`."""
