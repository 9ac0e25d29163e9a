import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1] / "guests"))  # machine.py
sys.path.insert(0, str(Path(__file__).parents[1] / "cpu" / "bt"))  # bare.py, which that needs
sys.path.insert(0, str(Path(__file__).parents[1] / "vm"))  # bare_worker.py
