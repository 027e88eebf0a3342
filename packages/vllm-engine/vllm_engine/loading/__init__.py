"""From checkpoint files to model weights."""
