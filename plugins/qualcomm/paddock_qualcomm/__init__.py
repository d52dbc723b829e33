"""Paddock's adapter for Qualcomm's NPUs, through ONNX Runtime's QNN execution provider."""
