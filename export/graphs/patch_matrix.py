"""A patch convolution as a product with a matrix, which is one, since its kernel is as wide as its stride.

The numbers are the same but for the order of a sum of 256, and no device has to plan a convolution for each length.
"""

from __future__ import annotations

from torch import Tensor, nn

from dasheng_edge.export.variants.modules import PatchConvolution


class PatchMatrix(nn.Module):
    """What a `PatchConvolution` computes, with its weights under their names."""

    def __init__(self, convolution: PatchConvolution) -> None:
        super().__init__()
        self.weight, self.bias = convolution.weight, convolution.bias

    def forward(self, mel: Tensor) -> Tensor:
        """A spectrogram [batch, n_mels, frames] -> patches [batch, frames // 4, dim]."""
        dim, _, bands, width = self.weight.shape
        patches = mel.shape[-1] // width
        frames = mel.narrow(-1, 0, patches * width).transpose(1, 2)
        rows = frames.reshape(mel.shape[0], patches, width * bands)
        product = rows @ self.weight.permute(3, 2, 1, 0).reshape(width * bands, dim)
        return product if self.bias is None else product + self.bias


def multiply_patches(encoder: nn.Module) -> None:
    """Let every patch convolution of an encoder multiply by a matrix."""
    for parent in list(encoder.modules()):
        for name, child in parent.named_children():
            if isinstance(child, PatchConvolution):
                setattr(parent, name, PatchMatrix(child))
