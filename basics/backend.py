"""Import this before Keras: it chooses the backend that is installed and lowers TensorFlow's log level."""

import os
import warnings
from importlib.util import find_spec

from basics.running import InputError

INSTALLED = [name for name in ("tensorflow", "jax") if find_spec(name)]
if not INSTALLED:
    raise InputError("neither tensorflow nor jax is installed; pip install -r requirements.txt")
if (chosen := os.environ.get("KERAS_BACKEND") or INSTALLED[0]) not in INSTALLED:
    raise InputError(f"KERAS_BACKEND={chosen}: no such backend here; unset it, or choose {' or '.join(INSTALLED)}")
os.environ["KERAS_BACKEND"] = chosen
os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
# One token per frame (clip's, or a grid pooled to one) attends to itself alone; Keras takes that for a mistake.
warnings.filterwarnings("ignore", "You are using a softmax over axis")
