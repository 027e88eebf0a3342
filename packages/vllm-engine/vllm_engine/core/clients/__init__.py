"""Ways to hold an engine core: in this call stack, in a thread, in a process of its own, or in one that another process
holds. All speak the same messages.
"""
