import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent))  # native.py, instructions.py
sys.path.insert(0, str(Path(__file__).parents[2] / "guests"))  # machine.py
