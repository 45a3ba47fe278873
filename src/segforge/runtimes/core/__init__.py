"""What the runtimes share: their contract, ONNX Runtime as the reference, and `cuda`, which owns a GPU's memory."""
