import sys
from pathlib import Path

for room in ("client", "meta", "simulation", "privacy"):
    sys.path.insert(0, str(Path(__file__).parents[1] / room))
