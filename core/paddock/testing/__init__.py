"""The conformance kit: what a vendor runs against an adapter, from its own tests or as `python -m paddock.testing`.

`cases` reads ONNX's own backend node tests, `comparing` judges an answer as the standard does, `nodes` deploys every
case on every adapter, `known` lists what the reference itself gets wrong, `matrix` shows the outcome.
"""
