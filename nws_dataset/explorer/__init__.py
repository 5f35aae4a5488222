"""A zoo as one HTML file to look into: every model a point, no server, no code."""

from importlib.util import find_spec

NEEDS = ("jinja2", "matplotlib", "rich", "vl_convert")  # modules of the extra `explore`


def missing_libraries() -> list[str]:
    """Those of NEEDS that are not installed."""
    return [name for name in NEEDS if find_spec(name) is None]
