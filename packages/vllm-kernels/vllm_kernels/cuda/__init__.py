"""What is about CUDA itself, and not about a kernel."""
