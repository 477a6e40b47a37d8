"""Engine tests in Triton's interpreter, which is chosen when a kernel is imported.

Hence a process of its own: `make test-interpreter`. In any other run they are not collected.
"""

import os

collect_ignore_glob = [] if os.environ.get("TRITON_INTERPRET") == "1" else ["test_*.py"]
