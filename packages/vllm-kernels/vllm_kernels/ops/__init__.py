"""The public functions: argument checks and dispatch, no maths."""
