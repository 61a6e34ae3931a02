"""Texts as samples: reading tables and folders, tokens, duplicates."""
