"""Text to requests, and tokens back to text. Imports no torch."""
