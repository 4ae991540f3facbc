"""Faults for real processes, a record of what was said, and a check of what it means."""
