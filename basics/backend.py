"""Import this before Keras: it chooses the backend that is installed and lowers TensorFlow's log level."""

import os
import warnings
from importlib.util import find_spec

if "KERAS_BACKEND" not in os.environ and not find_spec("tensorflow"):
    os.environ["KERAS_BACKEND"] = "jax"
os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
# One token per frame (clip's, or a grid pooled to one) attends to itself alone; Keras takes that for a mistake.
warnings.filterwarnings("ignore", "You are using a softmax over axis")
