"""Shared by tests and scripts, not in the wheel: a Hub on this machine, small zoos and releases."""
