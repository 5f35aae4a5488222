"""The two original releases as subsets of a zoo: `importing.import_zoo` writes them, `nws` and `small_cnn`
read their files.
"""
