"""Networks that learn from whole rows of one architecture: of their class, a number, or their edges.

`base` trains and standardises; the other modules have a method each, or a few alike.
"""
