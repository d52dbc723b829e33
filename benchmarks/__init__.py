"""Side-by-side measurements against the native APIs: ratios from one interleaved run, never absolute promises."""
