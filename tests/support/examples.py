"""How many examples hypothesis tries: so many, or ten times as many with `pytest --hypothesis-profile=long`."""

from typing import Any

from hypothesis import settings

USUAL, LONG = 100, 1000  # hypothesis' own default, and that of the profile


def examples(count: int, **options: Any) -> settings:
    assert settings.default is not None
    return settings(max_examples=count * settings.default.max_examples // USUAL, **options)
