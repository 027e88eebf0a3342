"""HTTP with so little work for each piece of an answer that the client does not spoil what it measures."""
