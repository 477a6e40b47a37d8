"""Makes `import benchmarks` work as `benchmarks/serving.py` does, not through sys.path."""

import importlib.util
from pathlib import Path

SERVING = Path(__file__).parents[2] / "benchmarks" / "serving.py"

_spec = importlib.util.spec_from_file_location("benchmark_entry", SERVING)
assert _spec is not None
assert _spec.loader is not None
_entry = importlib.util.module_from_spec(_spec)
_spec.loader.exec_module(_entry)
_entry.make_package_importable()
