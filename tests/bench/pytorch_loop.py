"""Peer 3: a plain PyTorch loop of the same network, in the memory layout that is fastest on processors; on the first
graphics card, if PyTorch sees one.

`python pytorch_loop.py FILE.npz` prints one line of JSON; needs PyTorch and NumPy, nothing of ours.
"""

import json
import sys
import time

import numpy as np
import torch
from torch import nn


def main(path: str) -> dict[str, float | str]:
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    arrays = np.load(path)
    images, labels = torch.from_numpy(arrays["images"]), torch.from_numpy(arrays["labels"])
    layers = [nn.Conv2d(1, 16, 5, padding="same"), nn.MaxPool2d(2), nn.ReLU()]
    layers += [nn.Conv2d(16, 36, 5, padding="same"), nn.MaxPool2d(2), nn.ReLU()]
    layers += [nn.Flatten(), nn.Linear(1764, 128), nn.ReLU(), nn.Linear(128, 10)]
    network = nn.Sequential(*layers).to(device, memory_format=torch.channels_last)
    optimizer = torch.optim.Adam(network.parameters(), lr=1e-4)
    for step in range(320):
        if step == 20:
            wait_for(device)
            began = time.perf_counter()
        chosen = torch.randint(len(labels), (64,))
        batch = images[chosen].to(device).unsqueeze(1).float() / 255
        batch = batch.to(memory_format=torch.channels_last)
        optimizer.zero_grad()
        nn.functional.cross_entropy(network(batch), labels[chosen].to(device)).backward()
        optimizer.step()
    wait_for(device)
    seconds = time.perf_counter() - began
    name = torch.cuda.get_device_name(device) if device.type == "cuda" else "processor"
    return {"steps": 300, "seconds": seconds, "device": name}


def wait_for(device: torch.device) -> None:
    """A graphics card is still at work when Python has gone on."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)


if __name__ == "__main__":
    print(json.dumps(main(sys.argv[1])))
