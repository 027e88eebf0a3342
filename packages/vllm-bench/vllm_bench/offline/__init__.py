"""Benchmarks that hold the engine in their own process: no server, no URL.

Only these modules, and ``commands/startup.py``, reach for the wheels of the engine and the server, and only when the
benchmark is called: the others are installed and run without them.
"""
