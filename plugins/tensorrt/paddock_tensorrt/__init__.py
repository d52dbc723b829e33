"""Paddock's adapter for NVIDIA GPUs through TensorRT: gpu/tensorrt."""
