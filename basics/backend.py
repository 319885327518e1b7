"""Import this before Keras: it chooses the backend that is installed and lowers TensorFlow's log level."""

import os
import warnings
from importlib.util import find_spec

from basics.artifacts import read_json
from basics.running import InputError


def is_installed(name):
    try:
        return find_spec(name) is not None
    except ImportError:  # of a finder that hides it
        return False


INSTALLED = list(filter(is_installed, ("tensorflow", "jax")))
SETTINGS = {"backend?": str, "floatx?": {"float16", "float32", "float64"}, "epsilon?": float}
SETTINGS |= {"image_data_format?": {"channels_last", "channels_first"}}


def settings_file():
    """Where Keras reads settings, and writes them where there are none."""
    home = os.path.expanduser("~")
    folder = os.environ.get("KERAS_HOME", os.path.join(home if os.access(home, os.W_OK) else "/tmp", ".keras"))
    return os.path.expanduser(os.path.join(folder, "keras.json"))


def choose():
    """The backend that KERAS_BACKEND names, else the one of keras.json, else one that is installed: Keras writes
    "tensorflow" into that file whether it is there or not. Raises InputError where it is not installed.
    """
    if not INSTALLED:
        raise InputError("neither tensorflow nor jax is installed; pip install -r requirements.txt")
    file = settings_file()
    settings = read_json(file, SETTINGS, "mend or delete it") if os.path.exists(file) else {}
    if name := os.environ.get("KERAS_BACKEND"):
        where = f"KERAS_BACKEND={name}"
    else:
        name, where = settings.get("backend"), f"{file}: backend {settings.get('backend')}"
        name = INSTALLED[0] if name in (None, "tensorflow") else name
    if name not in INSTALLED:
        raise InputError(f"{where}: no such backend here; unset it, or choose {' or '.join(INSTALLED)}")
    return name


os.environ["KERAS_BACKEND"] = choose()
os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
# One token per frame (clip's, or a grid pooled to one) attends to itself alone; Keras takes that for a mistake.
warnings.filterwarnings("ignore", "You are using a softmax over axis")
