"""The launches of the tests train the small study of tests/study."""

import sys
from pathlib import Path

sys.path.append(str(Path(__file__).resolve().parents[1] / "study"))
