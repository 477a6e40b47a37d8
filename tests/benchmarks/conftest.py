"""Makes `import benchmarks` work as its programs do, not through sys.path."""

import runpy
from pathlib import Path

runpy.run_path(str(Path(__file__).parents[2] / "benchmarks" / "importable.py"))
