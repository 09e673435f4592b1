"""The tests, which run in several processes with one thread each."""
import os
import signal

# Before PyTorch is imported, and for the processes that tests start: threads
# that share a core wait for each other by spinning.
os.environ.setdefault('OMP_NUM_THREADS', '1')

# A background job's signals may be ignored, and its processes inherit that.
for number in (signal.SIGINT, signal.SIGHUP):
    if signal.getsignal(number) is signal.SIG_IGN:
        signal.signal(number, signal.SIG_DFL)
