"""Where data and models come from (early version; the loaders' branch replaces it)."""

from __future__ import annotations

read_log: dict[str, dict[str, str | None]] = {}


class MissingInput(Exception):
    """An input that is not here; the message says where to get it."""
