"""The three ONNX graphs of a bundle, each written and compared with the reference."""
