import os
import sys
from pathlib import Path

HERE = str(Path(__file__).parent)

# The toy method counts as installed, here and in child processes: its metadata lie beside this file.
sys.path.insert(0, HERE)
os.environ["PYTHONPATH"] = os.pathsep.join(filter(None, (HERE, os.environ.get("PYTHONPATH"))))
os.environ.pop("HEADWATER_STRICT", None)
os.environ.pop("HEADWATER_DISABLE", None)
