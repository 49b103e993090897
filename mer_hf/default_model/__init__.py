"""The default checkpoint: how each of its branches is trained and measured, and how it is loaded."""
