"""The engine core: scheduler, KV cache accounting, the step loop and its process boundary."""
