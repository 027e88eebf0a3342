"""Who comes first: the answers of ``--scheduling-policy`` to what the scheduler asks."""
