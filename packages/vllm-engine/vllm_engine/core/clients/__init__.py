"""Three ways to hold an engine core: in this call stack, in a thread, in a process. All speak the same messages."""
