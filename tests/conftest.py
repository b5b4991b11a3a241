from __future__ import annotations

import resource
import signal

# A shell that starts the tests in the background tells them to ignore SIGINT, and every program they start inherits that; but
# some of them are interrupted on purpose.
if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)

# Many services live and end in this process, and a login has room for 1024 files; ZeroMQ ends a process that has no more.
_FILES = 8192
_soft, _hard = resource.getrlimit(resource.RLIMIT_NOFILE)
if _soft < _FILES:
    resource.setrlimit(resource.RLIMIT_NOFILE, (min(_FILES, _hard), _hard))
