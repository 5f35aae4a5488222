"""Templates of the dataset card and its kin: text for Jinja, no logic."""
