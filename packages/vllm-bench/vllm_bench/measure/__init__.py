"""From records to figures: pure functions, each tested against plain arithmetic on made-up records."""
