"""Chat templates that come with requests, rendered in a process that can be ended."""
