"""A FAKE: the folder in which the wheel of TensorRT's libraries has them. What lies here is no library."""
