from __future__ import annotations

import signal

# A shell that starts the tests in the background tells them to ignore SIGINT, and every program they start inherits that; but
# some of them are interrupted on purpose.
if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)
