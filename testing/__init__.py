"""What tests and scripts share: a Hub on this machine, and small zoos and releases; not part of the wheel."""
