"""The conformance kit: what a vendor runs against an adapter, from its own tests or as `paddock conformance`.

    class TestAcme(AdapterConformance):
        adapter = AcmeAdapter

`conformance` makes each check a test, `runner` runs them in a child process that is started anew after a crash or a
hang, `table` says what a check is, `bench` what it works with, `checks_*` are the checks by area, `singles` and `zoo`
the models, `judging` what counts as right, `outcomes` and `certificate` what came of it.

`python -m paddock.testing` runs ONNX's own backend node tests: `cases` reads them, `comparing` judges an answer as the
standard does, `nodes` deploys every case on every adapter, `known` lists what the reference itself gets wrong, `matrix`
shows the outcome.
"""

from paddock.testing.conformance import AdapterConformance
from paddock.testing.outcomes import Area, Outcome, Result

__all__ = ["AdapterConformance", "Area", "Outcome", "Result"]
