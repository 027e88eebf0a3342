"""The meaning of every operation in plain torch: the oracle of the tests, slow and obvious."""
