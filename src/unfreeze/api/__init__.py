"""The verbs: one file each, composing the floors below."""
