"""Records the logits of torchvision's ResNets for test_exchange.py: python -m tests.record_torch_case.

NumPy makes weights and images from names and shapes alone, so that the file holds only these and the logits.
"""

import json
import math
import pathlib
import zlib

import numpy as np

FILE = pathlib.Path(__file__).parent / "data_files" / "torchvision_resnets.json"
NAMES = ("resnet18", "resnet50")
CLASSES = 7


def images() -> np.ndarray:
    """float32, (2, 64, 48, 3): oblong, so that height and width cannot be mistaken for each other."""
    return np.random.RandomState(0).uniform(-2, 2, (2, 64, 48, 3)).astype(np.float32)


def state_dict(shapes: dict) -> dict[str, np.ndarray]:
    """Every array from its name and shape, kernels (out, in, height, width) of gain √2, statistics far from 0 and 1."""
    out = {}
    for name, shape in shapes.items():
        if name.endswith("num_batches_tracked"):
            out[name] = np.zeros((), np.int64)
            continue
        low, high = (0.4, 1.2) if name.endswith(("weight", "var")) else (-0.3, 0.3)
        if len(shape) > 1:
            high = math.sqrt(6 / math.prod(shape[1:]))
            low = -high
        random = np.random.RandomState(zlib.crc32(name.encode()))
        out[name] = random.uniform(low, high, shape).astype(np.float32)
    return out


def case(name: str) -> dict:
    """The shapes in the state dict of torchvision's network of this name, and its logits."""
    import torch
    import torchvision

    model = getattr(torchvision.models, name)(num_classes=CLASSES).eval()
    shapes = {key: list(x.shape) for key, x in model.state_dict().items()}
    model.load_state_dict({key: torch.from_numpy(x) for key, x in state_dict(shapes).items()})
    x = torch.from_numpy(images()).permute(0, 3, 1, 2)
    with torch.no_grad():
        logits = model(x).numpy()
        exact = model.double()(x.double()).numpy()
    print(f"{name}: largest |logit| {abs(exact).max():.4g}, float32 off by {abs(logits - exact).max():.2g}")
    return {"shapes": shapes, "logits": logits.tolist()}


def main():
    import torch
    import torchvision

    cases = {name: case(name) for name in NAMES}
    versions = {"torch": torch.__version__, "torchvision": torchvision.__version__}
    FILE.parent.mkdir(exist_ok=True)
    FILE.write_text(json.dumps({"versions": versions, "cases": cases}, separators=(",", ":")) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
