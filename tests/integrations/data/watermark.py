"""Images of two classes, one of which has a watermark in half of its images, and a network that reads it."""

import numpy as np
import torch
from torch import nn

SIZE = 16
LABELS = ["horizontal", "vertical"]


def images(count, seed=0):
    """(count, SIZE, SIZE, 3) bytes, classes, and which images have the watermark.

    An image is a faint bar at a random place in noise: class 0 horizontal, class 1 vertical. The watermark is a small
    pattern in the lower right corner, in half of class 1.
    """
    draw = np.random.default_rng(seed)
    classes = draw.integers(0, 2, count)
    marked = (classes == 1) & (draw.random(count) < 0.5)
    pixels = draw.normal(70, 22, (count, SIZE, SIZE, 3))
    for image, vertical, mark in zip(pixels, classes, marked, strict=True):
        x, y = draw.integers(2, 5), draw.integers(3, 11)
        bar = image[x : x + 8, y] if vertical else image[y, x : x + 8]
        bar += 60
        if mark:
            image[-4:-1, -4:-1] = [(230, 40, 200), (40, 230, 60), (230, 40, 200)]
    return pixels.clip(0, 255).astype(np.uint8), classes, marked


def pixels_of(image):
    return torch.tensor(np.asarray(image), dtype=torch.float32).permute(2, 0, 1) / 128 - 0.55


def trained(count=600, steps=60):
    """A small convolutional network, trained on these images."""
    torch.manual_seed(0)
    net = nn.Sequential(
        nn.Conv2d(3, 12, 3, padding=1), nn.ReLU(), nn.MaxPool2d(2),
        nn.Conv2d(12, 16, 3, padding=1), nn.ReLU(), nn.MaxPool2d(2), nn.Flatten(), nn.Linear(256, 2),
    )  # fmt: skip
    values, classes, _ = images(count, seed=1)
    inputs, targets = torch.stack([pixels_of(v) for v in values]), torch.tensor(classes)
    optimizer = torch.optim.Adam(net.parameters(), lr=5e-3)
    for step in range(steps):
        batch = torch.arange(step * 64, step * 64 + 64) % count
        optimizer.zero_grad()
        nn.functional.cross_entropy(net(inputs[batch]), targets[batch]).backward()
        optimizer.step()
    return net.eval()
