"""A zoo in the layouts of the two original releases: `exporting.export_zoo` writes them, so that loaders
that were written for a release read the zoo.
"""
