"""Ours against other inference programs on this machine, in one run; see ``tools/compare_peers.py``."""
