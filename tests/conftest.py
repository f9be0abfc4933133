"""Before torch is imported: threads that wait shall sleep, not spin.

On two cores with anything else running, spinning made the model tests ten times slower.
"""

import os
import signal

os.environ.setdefault("OMP_WAIT_POLICY", "passive")

# A shell that starts a job in the background makes it deaf to Ctrl-C, and every child of it as well.
signal.signal(signal.SIGINT, signal.default_int_handler)
