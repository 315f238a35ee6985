"""A Vision Transformer trained on scikit-learn's digits, in seconds, and pictures to try it on."""

import functools

import torch
from transformers import ViTConfig, ViTForImageClassification

from marsnn.data import load_digits

EPOCHS, BATCH = 20, 64


@functools.cache
def digits():
    """Name of a part -> images [number, 1, 8, 8] and labels [number]."""
    parts = load_digits()
    return {
        name: (getattr(parts, name).x[0].unflatten(-1, (1, 8, 8)), getattr(parts, name).y)
        for name in ("train", "validation", "test")
    }


def untrained(**changes):
    """A ViT of 16 patches and a class token, 4 layers of 32 features, weights large enough to matter."""
    settings = {
        "image_size": 8, "patch_size": 2, "num_channels": 1, "num_labels": 10, "hidden_size": 32,
        "intermediate_size": 64, "num_hidden_layers": 4, "num_attention_heads": 4, "initializer_range": 0.1,
    }  # fmt: skip
    torch.manual_seed(0)
    return ViTForImageClassification(ViTConfig(**{**settings, **changes})).eval()


@functools.cache
def _teacher():
    model, (images, labels) = untrained().train(), digits()["train"]
    steps = EPOCHS * (len(images) // BATCH)
    optimizer = torch.optim.AdamW(model.parameters(), lr=5e-3, weight_decay=0.01)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, 5e-3, total_steps=steps)
    for _ in range(EPOCHS):
        for rows in torch.randperm(len(images)).split(BATCH)[: len(images) // BATCH]:
            optimizer.zero_grad()
            model(images[rows], labels=labels[rows]).loss.backward()
            optimizer.step()
            schedule.step()
    return model.eval()


def seeing_teacher():
    """The trained ViT; never change it."""
    return _teacher()


def accuracy(model, part="test"):
    """The share of images that a model knows."""
    images, labels = digits()[part]
    with torch.no_grad():
        return (model(images).logits.argmax(-1) == labels).float().mean().item()
