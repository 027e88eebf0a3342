"""The life of the server's process: listening, stopping, and what it says of itself."""
