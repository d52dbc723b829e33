"""cpu/reference for Paddock: ONNX models on the reference evaluator that comes with onnx."""
