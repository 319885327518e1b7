"""Import this before Keras: it chooses the backend that is installed, and silences TensorFlow's start-up notes."""

import contextlib
import os
import warnings
from importlib.util import find_spec

if "KERAS_BACKEND" not in os.environ and not find_spec("tensorflow"):
    os.environ["KERAS_BACKEND"] = "jax"
os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
# One token per frame (clip's, or a grid pooled to one) attends to itself alone; Keras takes that for a mistake.
warnings.filterwarnings("ignore", "You are using a softmax over axis")


@contextlib.contextmanager
def quiet_import():
    """Drop what TensorFlow's C++ code writes to file descriptor 2 while it is imported, whatever its log level."""
    stderr = os.dup(2)
    with open(os.devnull, "w") as devnull:
        os.dup2(devnull.fileno(), 2)
        try:
            yield
        finally:
            os.dup2(stderr, 2)
            os.close(stderr)
