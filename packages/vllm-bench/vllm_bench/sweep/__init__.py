"""``vllm bench sweep serve``: a grid over the settings of a server and of its load."""
