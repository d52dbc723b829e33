"""Paddock's adapters for OpenVINO: the CPU, and Intel's GPUs and NPUs."""
