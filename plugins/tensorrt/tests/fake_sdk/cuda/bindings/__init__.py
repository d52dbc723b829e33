"""A FAKE of NVIDIA's package, for tests: see runtime.py."""
