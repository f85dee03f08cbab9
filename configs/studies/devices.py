"""How the full-scale runs are laid on devices: nothing here changes a result, so it is no part of a stage's key."""

from dataclasses import replace

from jaxalign.studies.study import Stage


def laid_out(stage: Stage, tensor: int, microbatches: int) -> Stage:
    """A stage, and the stages before it, on such a mesh and in so many parts a batch.

    Evaluation and fills of the reference cache take batches that give every device of a pod a row.
    """
    config = {
        **stage.config,
        "mesh": {"tensor": tensor},
        "train": {**stage.config["train"], "microbatches": microbatches},
        "evaluation": {"batch_size": 256},
    }
    inputs = {option: laid_out(source, tensor, microbatches) for option, source in stage.inputs.items()}
    return replace(stage, config=config, inputs=inputs)
