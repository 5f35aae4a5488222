"""Writes a zoo in the layout of an original release, so that loaders of the release can read it."""
