"""What all tests share."""

from examples import LONG
from hypothesis import settings

# How long an example takes says more of the machine than of the program.
settings.register_profile("untimed", deadline=None)
settings.register_profile("long", deadline=None, max_examples=LONG)
settings.load_profile("untimed")
