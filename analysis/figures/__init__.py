"""The figures. They need matplotlib, which an analysis without figures does not."""

import sys
from importlib.util import find_spec

if find_spec("matplotlib") is None:
    sys.exit("error: figures need matplotlib: pip install -e '.[notebooks]'")
