"""All tests, in this process or another, keep compiled kernels where the command line does."""

import os

from hypothesis import settings

from eamsim.cli.doctor import cache_folder

os.environ.setdefault("NUMBA_CACHE_DIR", str(cache_folder()))

# How long an example takes says more of the machine than of the program.
settings.register_profile("untimed", deadline=None)
settings.load_profile("untimed")
