"""Kinds of networks: each is one file here, with its `Architecture`, and one line in KINDS.

Headers, shards, the index, statistics, views and training derive from the architecture; none of them lists
the kinds.
"""

from __future__ import annotations

import dataclasses
import typing
from typing import Any

from nws_dataset.errors import ZooError
from nws_dataset.files import parse_json
from nws_dataset.networks import cnn, kan, resnet, siren
from nws_dataset.networks.base import BaseArchitecture

KINDS: dict[str, type[BaseArchitecture]] = {
    kind.Architecture.kind: kind.Architecture for kind in (cnn, siren, kan, resnet)
}
DEFAULT_KIND = cnn.Architecture.kind  # of JSON without a kind, from before other kinds existed


def columns_of_architectures() -> dict[str, Any]:
    """Column -> type for the fields of all kinds; a field that some kinds lack allows null."""
    types: dict[str, Any] = {}
    owners: dict[str, int] = {}
    for kind in KINDS.values():
        hints = typing.get_type_hints(kind)
        for field in dataclasses.fields(kind):
            hint = hints[field.name]
            assert types.get(field.name, hint) == hint, f"{field.name}: one column, two types"
            types[field.name] = hint
            owners[field.name] = owners.get(field.name, 0) + 1
    return {name: hint if owners[name] == len(KINDS) else hint | None for name, hint in types.items()}


def columns_of(architecture: BaseArchitecture) -> dict[str, Any]:
    """An architecture as columns of the index: its kind, its fields, and null for other kinds' fields."""
    none = {field.name: None for kind in KINDS.values() for field in dataclasses.fields(kind)}
    return {"kind": architecture.kind, **none, **dataclasses.asdict(architecture)}


def architecture_from_json(text: str) -> BaseArchitecture:
    """The architecture, of any kind, that `to_json` wrote.

    Args:
        text: JSON with the kind and fields of an architecture; missing fields get their defaults.

    Returns:
        The architecture.

    Raises:
        ZooError: if the text is not an architecture, or its kind is unknown.

    Example:
        >>> architecture_from_json('{"kind":"siren","image_channels":3}').id
        'siren2x32w30-plus0.5-in3x28'
    """
    expected = f'an architecture: its fields and "kind", one of {", ".join(KINDS)}'
    if not isinstance(text, str):
        raise ZooError("architecture_json", expected=expected, found=repr(text)[:80], do="rebuild it")
    fields = parse_json(text, "architecture_json", expected)
    kind = fields.pop("kind", DEFAULT_KIND) if isinstance(fields, dict) else None
    if not isinstance(kind, str) or kind not in KINDS:
        do = "rebuild it, or use the version of nws that built it"
        raise ZooError("architecture_json", expected=expected, found=text[:80], do=do)
    cls = KINDS[kind]
    names = {field.name for field in dataclasses.fields(cls)}
    if not fields.keys() <= names:
        unknown = ", ".join(sorted(fields.keys() - names))
        expected = f"the fields of Architecture ({kind})"
        raise ZooError("architecture_json", expected=expected, found=unknown[:80], do="rebuild it")
    return cls(**fields)
