"""Writes the original releases as subsets of a zoo: `nws` and `small_cnn` read, `importing` writes."""
