"""Where does this language model keep this piece of knowledge, and is that claim true?"""
__version__ = "0.1.0"

from . import attribution, data, model, neurons, plots
from .model import *
from .neurons import *
from .data import *
from .plots import *
from .attribution import *
