"""Paddock's adapter for ONNX Runtime on the CPU."""
