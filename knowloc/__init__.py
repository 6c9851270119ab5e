"""Where does this language model keep this piece of knowledge, and is that claim true?"""
__version__ = "0.1.0"

from . import attribution, cli, data, model, neurons, plots
from .attribution import estimate, localize, localizer
from .data import Fact, Facts, Query, load_facts, load_jsonl, load_pararel, toy_world
from .model import LM, Arch, UnsupportedModel, device_name, load_lm
from .neurons import Neurons, Scores, enhance, intervene, keep_only, patch, shared, suppress
