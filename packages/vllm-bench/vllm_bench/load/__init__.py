"""Sends a workload: when, how many at a time, and how late."""
