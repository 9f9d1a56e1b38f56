"""What every test needs: nothing of this machine's own state may be read or changed."""

from __future__ import annotations

import os
import tempfile

# Set here and not in a fixture, so that it holds for module-wide fixtures and for the commands that tests start too.
os.environ["GPUBENCH_STATE"] = tempfile.mkdtemp(prefix="gpubench-test-state-")
