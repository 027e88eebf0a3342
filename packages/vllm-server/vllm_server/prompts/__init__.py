"""From a request's messages or texts to the engine's prompt."""
