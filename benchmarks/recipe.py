"""Import this before a program of egs/atepp/bin, which is no package: it shows Python the way."""

import sys
from pathlib import Path

sys.path.append(str(Path(__file__).resolve().parents[1] / "egs/atepp/bin"))
