"""Who may ask, and how much: what a request passes before its route."""
