"""Patches by a matrix: the numbers of the convolution, whatever its sizes."""

from __future__ import annotations

import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from dasheng_edge.export.graphs.patch_matrix import PatchMatrix, multiply_patches
from dasheng_edge.export.variants.modules import PatchConvolution
from dasheng_edge.runtime.deviation import relative_rms


@settings(max_examples=25, deadline=None)
@given(st.integers(1, 3), st.integers(1, 9), st.integers(1, 80), st.integers(1, 6), st.integers(0, 40))
def test_the_numbers_are_those_of_the_convolution(chunks: int, dim: int, bands: int, width: int, more: int) -> None:
    torch.manual_seed(0)
    convolution = PatchConvolution(dim, bands, width).requires_grad_(requires_grad=False)
    mel = torch.randn(chunks, bands, width + more)
    got, want = PatchMatrix(convolution)(mel), convolution(mel)
    assert got.shape == want.shape == (chunks, (width + more) // width, dim)
    assert relative_rms(got.numpy(), want.numpy()) <= 1e-6


def test_names_of_weights_stay() -> None:
    inner = nn.ModuleDict({"proj": PatchConvolution(4, 8, 2)})
    module = nn.ModuleDict({"inner": inner, "bare": PatchConvolution(4, 8, 2)})
    names = list(module.state_dict())
    multiply_patches(module)
    assert list(module.state_dict()) == names
    assert not any(isinstance(one, nn.Conv2d) for one in module.modules())
