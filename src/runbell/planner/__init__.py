"""What if: what polling and webhooks cost you, from how long your own runs take.

from runbell.planner import Trace, Workload, plan

found = plan(Workload(Trace.lognormal(median=6, p95=25), runs_per_month=100_000))
print(found.recommendation)
"""

from __future__ import annotations

from runbell.errors import MissingExtra

try:
    from runbell.planner.planning import Plan, plan
    from runbell.planner.traces import Trace
    from runbell.planner.workload import Workload
except ModuleNotFoundError as error:
    if error.name != "numpy":
        raise
    raise MissingExtra("runbell.planner", "planner") from error

__all__ = ["Plan", "Trace", "Workload", "plan"]
