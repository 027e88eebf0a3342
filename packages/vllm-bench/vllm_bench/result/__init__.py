"""What becomes of the figures: a JSON file under documented keys, and a table for the reader."""
