"""The operations in C++ (``csrc/cpu``), for the instructions that this machine has."""
