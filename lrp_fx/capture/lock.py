"""The lock of everything that traces."""

import threading

#: PyTorch's tracers change the state of the whole process (flags, patched methods): one thread traces at a time.
TRACING = threading.RLock()
