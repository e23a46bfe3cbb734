import sys
from pathlib import Path

# The commands import each other by plain name, as they do when they are run.
sys.path.insert(0, str(Path(__file__).parents[2] / "scripts"))
