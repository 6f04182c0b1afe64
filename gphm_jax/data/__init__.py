"""From files to `Batch` and back: NumPy only, no model is imported here."""
