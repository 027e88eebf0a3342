"""From the engine's outputs to the bodies and events of the API."""
