"""All tests, in this process or another, keep compiled kernels where the command line does."""

import os

from eamsim.cli.doctor import cache_folder

os.environ.setdefault("NUMBA_CACHE_DIR", str(cache_folder()))
