"""The tests, which run in several processes with one thread each."""
import os

# Before PyTorch is imported, and for the processes that tests start: threads
# that share a core wait for each other by spinning.
os.environ.setdefault('OMP_NUM_THREADS', '1')
