"""common.SAGA of PyTorch's own layers, the other side of a training step; attention scores are not asked for."""

import torch
from torch import nn


class TorchSAGA(nn.Module):
    """Tokens (B, L, T, D) -> logits (B, C)."""

    def __init__(self, classes=2, frames=8, tokens=729, dim=1152, heads=12, temporal_blocks=5, dropout=0.1):
        super().__init__()

        def block():
            return nn.TransformerEncoderLayer(dim, heads, 4 * dim, dropout, "gelu", batch_first=True)

        self.spatial, self.temporal = block(), nn.Sequential(*(block() for _ in range(temporal_blocks)))
        self.classifier = nn.Linear(dim, classes)
        place, channel = torch.arange(frames)[:, None], torch.arange(dim)[None]
        angle = place / 10000 ** (2 * (channel // 2) / dim)
        self.register_buffer("positions", torch.where(channel % 2 == 0, angle.sin(), angle.cos()))

    def forward(self, tokens):
        clips, frames = tokens.shape[:2]
        x = self.spatial(tokens.flatten(0, 1)).mean(1).unflatten(0, (clips, frames)) + self.positions  # (B, L, D)
        return self.classifier(self.temporal(x).mean(1).float())
