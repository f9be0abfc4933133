"""Before torch is imported: threads that wait shall sleep, not spin.

On two cores with anything else running, spinning made the model tests ten times slower.
"""

import os

os.environ.setdefault("OMP_WAIT_POLICY", "passive")
