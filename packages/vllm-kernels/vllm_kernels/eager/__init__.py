"""The operations composed of torch's own CPU operators."""
