"""Model files: told apart by their bytes, unpickled in one place only, refused in one sentence where they cannot be used.

sniff          what a file is, before anything is opened
pickles        the only place that unpickles
architectures  `--arch` by name
input_errors   why a model does not take some inputs
entries        which weights of a checkpoint
state_dict     a state_dict matched and checked
plain_weights  lazy layers get sizes, computed weights become plain
behavior       random and batch-dependent models are refused
model          all of it together: load_model, load, open_artifact
live_module    a module in memory, likewise
"""

from compress.checkpoint.load.model import Loaded, example_inputs, load, load_model, open_artifact, parse_shape, refusal

__all__ = ["Loaded", "example_inputs", "load", "load_model", "open_artifact", "parse_shape", "refusal"]
