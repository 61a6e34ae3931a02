"""Exports a run's model to other tools' formats, each verified by reading it back."""
