"""What is sent: prompts, lengths, moments. All of it comes from ``--seed``, and is known before the run begins."""
