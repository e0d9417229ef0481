"""Models as ONNX files whose tables stay coded: graphs, bodies of fewer bits, and the check against PyTorch."""
