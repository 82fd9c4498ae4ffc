"""Peer 3: a plain PyTorch loop of the same network, in the memory layout that is fastest on processors.

`python pytorch_loop.py FILE.npz` prints one line of JSON; needs PyTorch and NumPy, nothing of ours.
"""

import json
import sys
import time

import numpy as np
import torch
from torch import nn


def main(path: str) -> dict[str, float]:
    arrays = np.load(path)
    images, labels = torch.from_numpy(arrays["images"]), torch.from_numpy(arrays["labels"])
    layers = [nn.Conv2d(1, 16, 5, padding="same"), nn.MaxPool2d(2), nn.ReLU()]
    layers += [nn.Conv2d(16, 36, 5, padding="same"), nn.MaxPool2d(2), nn.ReLU()]
    layers += [nn.Flatten(), nn.Linear(1764, 128), nn.ReLU(), nn.Linear(128, 10)]
    network = nn.Sequential(*layers).to(memory_format=torch.channels_last)
    optimizer = torch.optim.Adam(network.parameters(), lr=1e-4)
    for step in range(320):
        if step == 20:
            began = time.perf_counter()
        chosen = torch.randint(len(labels), (64,))
        batch = (images[chosen].unsqueeze(1).float() / 255).to(memory_format=torch.channels_last)
        optimizer.zero_grad()
        nn.functional.cross_entropy(network(batch), labels[chosen]).backward()
        optimizer.step()
    return {"steps": 300, "seconds": time.perf_counter() - began}


if __name__ == "__main__":
    print(json.dumps(main(sys.argv[1])))
