"""How long a build takes and how large it gets."""
