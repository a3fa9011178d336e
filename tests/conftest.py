"""Two test processes of one thread each; told to torch before anything imports it."""
import os

os.environ.setdefault("OMP_NUM_THREADS", "1")
