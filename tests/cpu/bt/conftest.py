import os
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent))  # native.py, instructions.py
sys.path.insert(0, str(Path(__file__).parents[2] / "guests"))  # machine.py

# A sample of the code that engines emit in tests is proved harmless; what isn't ends the guest (hostel.cpu.bt.verify).
os.environ.setdefault("HOSTEL_VERIFY_CODE", "16")
