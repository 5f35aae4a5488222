"""A zoo as one HTML file to look into: every model a point, no server, no code."""
