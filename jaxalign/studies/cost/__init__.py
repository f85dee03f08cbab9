"""What a study will cost before it runs: operations, memory on each device, hours, downloads."""

from jaxalign.studies.cost.estimate import cost_lines, on_target, stage_cost

__all__ = ["cost_lines", "on_target", "stage_cost"]
