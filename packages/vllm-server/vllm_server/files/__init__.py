"""Tensors that come with requests, read as data."""
