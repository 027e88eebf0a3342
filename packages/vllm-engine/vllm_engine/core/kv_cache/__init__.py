"""Which request owns which KV block."""
