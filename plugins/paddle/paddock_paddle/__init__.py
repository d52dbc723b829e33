"""Paddock's adapters for Paddle Inference on the CPU, and the format of Paddle 3's inference programs."""
