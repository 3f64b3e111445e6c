"""What every test begins with."""

import signal

# A shell starts what it runs in the background deaf to Ctrl-C, and so would be the commands that
# the tests start and stop.
signal.signal(signal.SIGINT, signal.default_int_handler)
