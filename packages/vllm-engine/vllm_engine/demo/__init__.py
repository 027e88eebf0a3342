"""The embedded demo model: package data that ``demo`` stands for as the name of a model."""
