"""Measures LLM servers by their URL: how they answer under load, and how fast they start."""

__version__ = "0.1.0"
