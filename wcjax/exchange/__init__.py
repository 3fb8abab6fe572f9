"""Exchange of weights with other programs: safetensors files, and torchvision's ResNets.

A run keeps its best network, folded to plain weights, in the Orbax folder `folded/`. `wcjax.training.load_folded` reads
it. To export those weights:

    model, variables = wcjax.training.load_folded(run)
    exchange.save_safetensors("weights.safetensors", variables)    # for JAX
    exchange.save_safetensors("torch.safetensors", exchange.to_torchvision(variables))    # for torch
"""

from wcjax.exchange.mappings import check_like
from wcjax.exchange.safetensors import load_safetensors, save_safetensors
from wcjax.exchange.torchvision import from_torchvision, to_torchvision

__all__ = ["check_like", "from_torchvision", "load_safetensors", "save_safetensors", "to_torchvision"]
